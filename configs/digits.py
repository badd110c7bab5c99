"""LSGM on the 1,797 handwritten digits of scikit-learn (8 x 8, 17 grey levels).

lsgm train --config=configs/digits.py --workdir=runs/digits
lsgm train --config=configs/digits.py:cld --workdir=runs/digits_cld

":cld" is LSGM-CLD: critically-damped Langevin diffusion as the jointly trained prior, otherwise the same config.
docs/results.md has the results of both.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the demo, "cld" for CLD as its prior; "quick" or "cld,quick" for under a minute.
    """
    if arg not in ("", "quick", "cld", "cld,quick"):
        raise ValueError(f"configs/digits.py takes no argument, 'quick', 'cld' or 'cld,quick', not {arg!r}")
    quick, cld = arg.endswith("quick"), arg.startswith("cld")
    return ConfigDict(
        dict(
            seed=0,
            data=dict(source="digits", image_shape=(8, 8, 1), levels=17, batch_size=64),
            autoencoder=dict(name="conv", channels=(32, 64), blocks=1, latent_channels=4, dropout=0.1),
            likelihood=dict(name="categorical"),
            # A velocity that starts in equilibrium has the better likelihood on the digits (docs/howto/cld.md).
            process=dict(name="cld", v0_var_scale=1.0) if cld else dict(name="vp"),
            # A scale of 100 instead of 1000 does not change the NELBO and halves the NFE of adaptive solvers.
            score=dict(
                name="unet", channels=(64,), blocks=1, attention=(4,), dropout=0.1, embedding_scale=100.0
            ),
            # The prior trains unweighted, the encoder on the bound; one backward pass serves both.
            objective=dict(
                weighting="unweighted", mixing_logit_init=0.0, mixed_score="gaussian" if cld else "none"
            ),
            density=dict(name="uniform", t_min=1e-3),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=2e-4),
            vae_kl=dict(start=0.7, steps=20 if quick else 300),
            # A low coefficient lets the latent gain information before the KL term counts in full.
            joint_kl=dict(start=0.4, steps=20 if quick else 800),
            joint_vae=dict(name="adamw", learning_rate=3e-4, final=3e-5),
            joint_prior=dict(name="adamw", learning_rate=1e-3, final=1e-4, clip=1.0),
            train=dict(
                vae_steps=40 if quick else 1000,
                steps=40 if quick else 1500,
                ema_decay=0.999,
                log_every=20 if quick else 50,
                eval_every=20 if quick else 250,
            ),
            solver=dict(name="Tsit5"),
            steps=dict(name="adaptive", rtol=1e-3, atol=1e-3),
            sampling=dict(t_min=1e-3),
            eval=dict(draws=16, samples=200 if quick else 2000),
        )
    )
