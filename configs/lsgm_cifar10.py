"""LSGM on CIFAR-10: the published runs with best FID, best likelihood, and balanced (Vahdat, Kreis, Kautz 2021).

lsgm train --config=configs/lsgm_cifar10.py:fid --workdir=runs/lsgm_cifar10_fid

Paper: 8 V100 (16 GB) for the VAE (4 for :nll), 16 V100 (32 GB) for the joint stage.
    :fid       FID 2.10 at an NFE of 138, NELBO at most 3.43 bits per dimension
    :nll       NELBO at most 2.87 bits per dimension, FID 6.89
    :balanced  FID 2.17, NELBO at most 2.95 bits per dimension
Data: lsgm data prepare cifar10 --source=cifar-10-python.tar.gz. Training mirrors images with probability one
half.

The recipe is the published one; docs/howto/lsgm.md lists the differences. ":cld" is LSGM-CLD, critically-damped
Langevin diffusion as the jointly trained prior, otherwise the recipe of ":fid"; no published results.
"""

from ml_collections import ConfigDict

VARIANTS = ("fid", "nll", "balanced", "cld")


def get_config(arg: str = "fid") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "fid", "nll", "balanced" or "cld"; with ",quick" a run of minutes at tiny widths.
    """
    variant, _, speed = arg.partition(",")
    if variant not in VARIANTS or speed not in ("", "quick"):
        raise ValueError(f"configs/lsgm_cifar10.py takes one of {VARIANTS}, also with ',quick', not {arg!r}")
    quick, nll, balanced, cld = speed == "quick", variant == "nll", variant == "balanced", variant == "cld"
    vae_steps, steps, warmup = (20, 20, 2) if quick else (117_000 if balanced else 78_000, 365_625, 975)
    decay = dict(clip=0.0, weight_decay=3e-4, decay_all=True)
    return ConfigDict(
        dict(
            seed=1,
            data=dict(
                source="cifar10",
                image_shape=(32, 32, 3),
                flip=True,
                batch_size=16 if quick else 256,
                splits=("train", "test", "test"),
            ),
            autoencoder=dict(
                name="nvae",
                groups_per_scale=(2 if quick else 4) if nll else (2 if quick else 20),
                latent_channels=2 if quick else 45 if nll else 9,
                encoder_channels=8 if quick else 256 if nll else 128,
                decoder_channels=8 if quick else 256 if nll else 128,
                channel_mult=(1, 2),
                pre_blocks=1,
                pre_cells=3 if nll else 2,
                post_blocks=1,
                post_cells=3 if nll else 2,
                encoder_cells=3 if nll else 2,
                decoder_cells=3 if nll else 2,
                arch="res_bnswish",
                flows=2 if nll else 0,
            ),
            likelihood=dict(name="mixture_of_logistics", density_below=1e-5),
            process=(
                # A velocity that starts in equilibrium has the better likelihood on the digits (docs/howto/cld.md).
                dict(name="cld", v0_var_scale=1.0) if cld else dict(name="geometric_vp" if nll else "vp")
            ),
            score=dict(
                name="ncsnpp",
                channels=8 if quick else 512,
                channel_mult=(1, 1, 1),
                blocks=1 if quick else 8,
                attention=(16,),
                embedding_dim=128,
                dropout=0.2,
            ),
            objective=dict(
                weighting="likelihood" if nll else "unweighted",
                mixed_score="gaussian" if cld else "none",
                mixing_logit_init=-3.0,
                control_variate=False,
            ),
            density=(
                dict(name="uniform", t_min=0.0)
                if nll
                else dict(name="optimal", weighting="unweighted", t_min=0.01)
            ),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=1e-4, clip=0.0, weight_decay=3e-4),
            vae_kl=dict(
                start=1e-4,
                end=1.0 if balanced else 0.7,
                constant=vae_steps // 10_000,
                steps=vae_steps // 2 if balanced else vae_steps,
                balanced=True,
            ),
            vae_penalty=dict(weight=1e-2),
            joint_vae=dict(name="adamw", learning_rate=1e-4, final=1e-5, warmup=warmup, eps=1e-3, **decay),
            joint_prior=dict(name="adamw", learning_rate=1e-4, final=1e-4, warmup=warmup, eps=1e-4, **decay),
            joint_kl=dict(start=1.0 if balanced else 0.7, steps=steps // 10),
            joint_vae_penalty=dict(weight=1e-2),
            # The published penalty misses the convolutions of the score networks in ":fid" and ":balanced".
            joint_prior_penalty=dict(weight=1e-2, spectral=nll),
            train=dict(
                vae_steps=vae_steps,
                steps=steps,
                # EMA of the prior's parameters, not of the VAE's.
                ema_warmup=quick,
                ema_vae=False,
                log_every=10 if quick else 100,
                eval_every=10 if quick else 5000,
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-6),
            eval=dict(draws=1),
        )
    )
