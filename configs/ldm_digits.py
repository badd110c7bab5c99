"""Class-conditional latent diffusion on the 8 x 8 digits of scikit-learn: minutes on two CPU cores.

lsgm train --config=configs/ldm_digits.py --workdir=runs/ldm_digits
lsgm sample --workdir=runs/ldm_digits --label=3 --guidance=2.0

It trains a first stage with GANLoss, then a prior conditioned on the digit, and demonstrates all components.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the run, "quick" for one of a minute.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/ldm_digits.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    return ConfigDict(
        dict(
            model="ldm",
            seed=0,
            data=dict(source="digits", image_shape=(8, 8, 1), levels=17, batch_size=64),
            autoencoder=dict(
                name="kl", channels=32, channel_mult=(1, 2), blocks=1, latent_channels=4, resolution=8
            ),
            discriminator=dict(channels=16, layers=1),
            gan_loss=dict(start=20 if quick else 500, weight=0.1),
            first_stage=dict(name="adam", learning_rate=1e-3, final=1e-4, b1=0.5, b2=0.9, clip=0.0),
            process=dict(name="discrete_vp", schedule="linear"),
            conditioning=dict(name="labels", classes=10, width=64),
            score=dict(
                name="unet", channels=(64, 64), blocks=1, attention=(4,), dropout=0.1, embedding_scale=100.0
            ),
            objective=dict(weighting="unweighted"),
            density=dict(name="timesteps"),
            optimiser=dict(name="adamw", learning_rate=1e-3, final=1e-4, clip=1.0),
            train=dict(
                first_stage_steps=40 if quick else 1000,
                steps=40 if quick else 3000,
                ema_decay=0.999,
                log_every=20 if quick else 50,
                eval_every=20 if quick else 250,
            ),
            solver=dict(name="DDIM"),
            steps=dict(name="linear", steps=50),
            sampling=dict(t_min=1e-3),
        )
    )
