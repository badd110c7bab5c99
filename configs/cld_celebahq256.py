"""CLD-SGM on CelebA-HQ-256: the run of the paper, and a later recipe of the authors (Dockhorn, Vahdat, Kreis 2022).

lsgm train --config=configs/cld_celebahq256.py:post_paper --workdir=runs/cld_celebahq256

Paper: 16 GPUs with 4 images each (model not stated). It shows samples and gives no FID.
    :paper       320,000 steps, two blocks per level, constant beta
    :post_paper  600,000 steps, four blocks per level, linear beta, AdamW; better samples, according to the authors

Network, process, weighting, density of t, optimiser and sampler are the published ones.
"""

from ml_collections import ConfigDict

VARIANTS = ("paper", "post_paper")


def get_config(arg: str = "post_paper") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "paper" or "post_paper"; with ",quick" a run of minutes at tiny widths.
    """
    variant, _, speed = arg.partition(",")
    if variant not in VARIANTS or speed not in ("", "quick"):
        raise ValueError(
            f"configs/cld_celebahq256.py takes one of {VARIANTS}, also with ',quick', not {arg!r}"
        )
    quick, later = speed == "quick", variant == "post_paper"
    return ConfigDict(
        dict(
            model="sgm",
            seed=0,
            data=dict(
                source="celebahq256",
                image_shape=(256, 256, 3),
                batch_size=8 if quick else 64,
                splits=("train", "validation", "validation"),
            ),
            process=dict(
                name="cld",
                beta_min=0.1 if later else 4.0,
                beta_max=7.0 if later else 4.0,
                mass=0.25,
                v0_var_scale=0.04,
                numerical_eps=1e-6,
            ),
            score=dict(
                name="ncsnpp",
                channels=4 if quick else 128,
                channel_mult=(1, 1, 2, 2, 2, 2, 2),
                blocks=1 if quick else 4 if later else 2,
                attention=(16,),
                fir=None,
                dropout=0.1,
                embedding="positional",
                embedding_scale=1.0,
            ),
            objective=dict(weighting="unweighted", spread="independent", mixed_score="velocity"),
            density=dict(name="uniform", t_min=1e-3 if later else 1e-5),
            optimiser=dict(
                name="adamw",
                learning_rate=1e-4,
                final=1e-4,
                warmup=2 if quick else 100_000,
                weight_decay=1e-2 if later else 0.0,
                clip=1.0,
            ),
            train=dict(
                steps=4 if quick else 600_000 if later else 320_000,
                log_every=2 if quick else 100,
                eval_every=2 if quick else 10_000,
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-3, denoise="euler"),
            eval=dict(draws=1, batch_size=8),
        )
    )
