"""Class-conditional latent diffusion on CIFAR-10, at a size for two CPU cores.

lsgm train --config=configs/ldm_cifar10.py --workdir=runs/ldm
lsgm sample --workdir=runs/ldm --label=3 --guidance=2.0

The recipe is ours; docs/results.md has its results.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the run, "quick" for one of a minute.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/ldm_cifar10.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    return ConfigDict(
        dict(
            model="ldm",
            seed=0,
            data=dict(source="cifar10", image_shape=(32, 32, 3), batch_size=32, flip=True),
            autoencoder=dict(
                name="kl", channels=32, channel_mult=(1, 2, 2), blocks=1, latent_channels=8, resolution=32
            ),
            discriminator=dict(channels=32, layers=2),
            gan_loss=dict(start=20 if quick else 1500, weight=0.1),
            first_stage=dict(name="adamw", learning_rate=1e-3, final=1e-4, weight_decay=0.0, clip=0.0),
            process=dict(name="discrete_vp", schedule="linear"),
            conditioning=dict(name="labels", classes=10, width=128),
            score=dict(name="ldm", channels=64, channel_mult=(1, 2), blocks=1, attention=(2,), head_width=32),
            # Near t = 1 the error of a noise prediction is amplified a hundredfold, the error of a v-prediction is not.
            objective=dict(prediction="v", weighting="v"),
            density=dict(name="timesteps"),
            optimiser=dict(name="adamw", learning_rate=6e-4, final=5e-5, clip=1.0),
            train=dict(
                first_stage_steps=40 if quick else 3000,
                steps=40 if quick else 3000,
                ema_decay=0.999,
                log_every=20 if quick else 50,
                eval_every=20 if quick else 500,
            ),
            solver=dict(name="DPMSolverPP"),
            steps=dict(name="log_snr", steps=20),
            sampling=dict(t_min=1e-3),
            eval=dict(samples=10_000, batch_size=100),
        )
    )
