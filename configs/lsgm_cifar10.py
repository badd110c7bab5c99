"""LSGM on CIFAR-10: the published runs with best FID, best likelihood, and balanced (Vahdat, Kreis, Kautz 2021).

lsgm train --config=configs/lsgm_cifar10.py:fid --workdir=runs/lsgm_cifar10_fid

Paper: 8 V100 (16 GB) for the VAE (4 for :nll), 16 V100 (32 GB) for the joint stage.
    :fid       FID 2.10 at 138 evaluations, NELBO at most 3.43 bits per dimension
    :nll       NELBO at most 2.87 bits per dimension, FID 6.89
    :balanced  FID 2.17, NELBO at most 2.95 bits per dimension
Data: lsgm data prepare cifar10 --source=cifar-10-python.tar.gz. Half of the images are mirrored in training.

Networks, process, weighting and times are the published ones. Not part of the run yet: the penalties on weights, KL
balancing and the KL ramp's end below one in the first stage.
"""

from ml_collections import ConfigDict

VARIANTS = ("fid", "nll", "balanced")


def get_config(arg: str = "fid") -> ConfigDict:
    """`arg`: "fid", "nll" or "balanced"; with ",quick" a run of minutes at tiny widths."""
    variant, _, speed = arg.partition(",")
    if variant not in VARIANTS or speed not in ("", "quick"):
        raise ValueError(f"configs/lsgm_cifar10.py takes one of {VARIANTS}, also with ',quick', not {arg!r}")
    quick, nll = speed == "quick", variant == "nll"
    vae_steps = 117_000 if variant == "balanced" else 78_000
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
            process=dict(name="geometric_vp" if nll else "vp"),
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
                weighting="likelihood" if nll else "unweighted", mixing_logit_init=-3.0, control_variate=False
            ),
            density=(
                dict(name="uniform", t_min=0.0)
                if nll
                else dict(name="optimal", weighting="unweighted", t_min=0.01)
            ),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=1e-4),
            joint_vae=dict(name="adamw", learning_rate=1e-4, final=1e-5, warmup=975, eps=1e-3),
            joint_prior=dict(name="adamw", learning_rate=1e-4, final=1e-4, warmup=975, eps=1e-4),
            train=dict(
                vae_steps=20 if quick else vae_steps,
                steps=20 if quick else 365_625,
                vae_kl_start=1e-4,
                vae_kl_steps=vae_steps // 2 if variant == "balanced" else vae_steps,
                kl_start=1.0 if variant == "balanced" else 0.7,
                kl_steps=36_562,
                log_every=10 if quick else 100,
                eval_every=10 if quick else 5000,
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-6),
            eval=dict(draws=1),
        )
    )
