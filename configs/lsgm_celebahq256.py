"""LSGM on CelebA-HQ-256 with 5 bits, as published (Vahdat, Kreis, Kautz 2021).

lsgm train --config=configs/lsgm_celebahq256.py:quantitative --workdir=runs/lsgm_celebahq256
lsgm train --config=configs/lsgm_celebahq256.py:qualitative --workdir=runs/lsgm_celebahq256_qualitative
lsgm train --config=configs/lsgm_celebahq256.py:qualitative_stage3 --workdir=runs/lsgm_celebahq256_stage3

Paper: 16 V100 (32 GB) in every stage.
    :quantitative        FID 7.22 at an NFE of 23, NELBO at most 0.70 bits per dimension
    :qualitative         the samples of the paper: geometric VPSDE, second stage
    :qualitative_stage3  a wider prior with the VPSDE, trained from scratch on the frozen VAE
Data: lsgm data prepare celebahq256 --source=PATH; 27,000 images to train, 3,000 to validate and test, 5 bits. Training
mirrors images with probability one half.

The recipe is the published one; docs/howto/lsgm.md lists the differences. Stage 3 takes its VAE from the run in
config.train.vae_from, which must exist.
"""

from ml_collections import ConfigDict

VARIANTS = ("quantitative", "qualitative", "qualitative_stage3")


def get_config(arg: str = "quantitative") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "quantitative", "qualitative" or "qualitative_stage3"; with ",quick" a run of minutes at tiny widths.
    """
    variant, _, speed = arg.partition(",")
    if variant not in VARIANTS or speed not in ("", "quick"):
        raise ValueError(
            f"configs/lsgm_celebahq256.py takes one of {VARIANTS}, also with ',quick', not {arg!r}"
        )
    quick, quantitative, third = speed == "quick", variant == "quantitative", variant == "qualitative_stage3"
    geometric = variant == "qualitative"
    t_min = 0.0 if geometric else 0.01
    vae_steps, steps, warmup = (4, 4, 2) if quick else (84_400, 421_500 if third else 422_000, 8440)
    decay = dict(clip=0.0, weight_decay=3e-4, decay_all=True)
    return ConfigDict(
        dict(
            seed=1,
            data=dict(
                source="celebahq256",
                image_shape=(256, 256, 3),
                levels=32,
                flip=True,
                batch_size=8 if quick else 96 if third else 64,
                splits=("train", "validation", "validation"),
            ),
            autoencoder=dict(
                name="nvae",
                scales=3 if quantitative else 2,
                groups_per_scale=1 if quick else 8 if quantitative else 10,
                latent_channels=2 if quick else 20,
                encoder_channels=4 if quick else 64,
                decoder_channels=4 if quick else 64,
                channel_mult=(1, 1, 2, 4) if quantitative else (1, 1, 2),
                pre_blocks=1,
                pre_cells=2,
                post_blocks=1,
                post_cells=2,
                encoder_cells=2,
                decoder_cells=2,
                arch="res_mbconv",
                input_skip=True,
                flows=2,
            ),
            likelihood=dict(name="mixture_of_logistics", density_below=1e-5),
            process=dict(name="geometric_vp" if geometric else "vp"),
            score=dict(
                name="ncsnpp",
                channels=8 if quick else 320 if third else 256,
                channel_mult=(1, 2, 2, 2) if quantitative else (1, 1, 2, 2, 2),
                blocks=1 if quick else 8,
                attention=(16,),
                embedding_dim=128,
                dropout=0.2,
            ),
            objective=dict(
                weighting="reweighted",
                mixing_logit_init=-6.0,
                inactive_kl=0.1,
                encoder_uses_ema=geometric,
                control_variate=False,
            ),
            density=dict(name="optimal", weighting="reweighted", t_min=t_min),
            # Separate t for the encoder: the disjoint training of the paper (Algorithm 2).
            encoder_density=dict(name="optimal", weighting="likelihood", t_min=t_min),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=1e-4, clip=0.0, weight_decay=3e-4),
            vae_kl=dict(start=1e-4, end=1.0, constant=vae_steps // 10_000, steps=vae_steps, balanced=True),
            vae_penalty=dict(weight=3e-2),
            joint_vae=dict(
                name="adamw",
                learning_rate=1e-4 if quantitative else 8e-5,
                final=1e-5,
                warmup=warmup,
                eps=1e-3,
                **decay,
            ),
            joint_prior=dict(
                name="adamw",
                learning_rate=6e-5 if third else 1e-4,
                final=6e-5 if third else 1e-4,
                warmup=warmup,
                eps=1e-4,
                **decay,
            ),
            joint_kl=dict(start=0.7 if geometric else 1.0, steps=steps // 10),
            joint_vae_penalty=dict(weight=1e-1),
            joint_prior_penalty=dict(weight=1e-2),
            train=dict(
                vae_steps=vae_steps,
                steps=steps,
                # EMA of the prior's parameters, not of the VAE's.
                ema_warmup=quick,
                ema_vae=False,
                freeze_vae=third,
                vae_from="runs/lsgm_celebahq256_qualitative" if third and not quick else "",
                log_every=2 if quick else 100,
                eval_every=2 if quick else 5000,
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-5),
            eval=dict(draws=1, batch_size=8),
        )
    )
