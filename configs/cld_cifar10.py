"""CLD-SGM on CIFAR-10, as published (Dockhorn, Vahdat, Kreis 2022).

lsgm train --config=configs/cld_cifar10.py --workdir=runs/cld_cifar10

Paper: 16 GPUs with 8 images each (model not stated); FID 2.25 by the probability-flow ODE at an NFE of 312, NLL at most
3.31 bits per dimension.

Network, process, weighting, density of t, optimiser and sampler are the published ones.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the published run, "quick" for a run of minutes at tiny widths.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/cld_cifar10.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    return ConfigDict(
        dict(
            model="sgm",
            seed=0,
            data=dict(
                source="cifar10",
                image_shape=(32, 32, 3),
                batch_size=16 if quick else 128,
                splits=("train", "test", "test"),
            ),
            process=dict(
                name="cld", beta_min=4.0, beta_max=4.0, mass=0.25, v0_var_scale=0.04, numerical_eps=1e-9
            ),
            score=dict(
                name="ncsnpp",
                channels=8 if quick else 128,
                channel_mult=(1, 2, 2, 2),
                blocks=1 if quick else 8,
                attention=(16,),
                dropout=0.1,
                embedding="fourier",
                embedding_scale=16.0,
                input_pyramid="residual",
            ),
            objective=dict(weighting="unweighted", spread="independent", mixed_score="velocity"),
            density=dict(name="uniform", t_min=1e-5),
            optimiser=dict(
                name="adamw",
                learning_rate=2e-4,
                final=2e-4,
                warmup=10 if quick else 100_000,
                weight_decay=0.0,
                clip=1.0,
            ),
            train=dict(
                steps=20 if quick else 800_000,
                log_every=10 if quick else 100,
                eval_every=10 if quick else 10_000,
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-3, denoise="euler"),
            eval=dict(draws=1),
        )
    )
