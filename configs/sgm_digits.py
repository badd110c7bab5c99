"""Pixel-space diffusion on the digits, without an autoencoder: the baseline of the LSGM.

lsgm train --config=configs/sgm_digits.py --workdir=runs/sgm_digits
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for minutes on two CPU cores, "quick" for under a minute.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/sgm_digits.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    return ConfigDict(
        dict(
            model="sgm",
            seed=0,
            data=dict(source="digits", image_shape=(8, 8, 1), levels=17, batch_size=64),
            process=dict(name="vp"),
            score=dict(
                name="unet", channels=(64, 64), blocks=1, attention=(4,), dropout=0.1, embedding_scale=100.0
            ),
            # Likelihood weighting with its low-variance density of t, because the metric is the NELBO.
            objective=dict(weighting="likelihood", mixed_score="gaussian"),
            density=dict(name="defensive", weighting="likelihood", t_min=1e-5),
            optimiser=dict(name="adamw", learning_rate=1e-3, final=1e-4, clip=1.0),
            train=dict(
                steps=40 if quick else 3000,
                ema_decay=0.999,
                log_every=20 if quick else 50,
                eval_every=20 if quick else 250,
            ),
            solver=dict(name="Tsit5"),
            steps=dict(name="adaptive", rtol=1e-3, atol=1e-3),
            sampling=dict(t_min=1e-3),
            eval=dict(draws=16),
        )
    )
