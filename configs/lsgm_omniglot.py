"""LSGM on OMNIGLOT, 28 x 28, binarised, as published (Vahdat, Kreis, Kautz 2021).

lsgm train --config=configs/lsgm_omniglot.py --workdir=runs/lsgm_omniglot

Paper: 2 V100 (16 GB) for the VAE, 4 for the joint stage; NELBO at most 87.79 nats.
Data: lsgm data prepare omniglot --source=chardata.mat, Burda's split (24,345 to train). Images are padded to 32 x 32
and binarised dynamically in training; validation and test use one fixed draw per image (the published runs binarise
them dynamically, too).

The recipe is the published one; docs/howto/lsgm.md lists the differences.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the published run, "quick" for a run of minutes at tiny widths.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/lsgm_omniglot.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    vae_steps, steps, warmup = (20, 20, 2) if quick else (38_000, 285_000, 3800)
    decay = dict(clip=0.0, weight_decay=3e-4, decay_all=True)
    return ConfigDict(
        dict(
            seed=1,
            data=dict(
                source="omniglot",
                image_shape=(32, 32, 1),
                levels=2,
                pad=2,
                binarise="dynamic",
                batch_size=16 if quick else 128,
                splits=("train", "test", "test"),
            ),
            autoencoder=dict(
                name="nvae",
                groups_per_scale=3,
                latent_channels=2 if quick else 20,
                encoder_channels=8 if quick else 64,
                decoder_channels=8 if quick else 64,
                channel_mult=(1, 2),
                pre_blocks=1,
                pre_cells=2,
                post_blocks=1,
                post_cells=2,
                encoder_cells=3,
                decoder_cells=3,
                arch="res_mbconv",
            ),
            likelihood=dict(name="cropped_bernoulli"),
            process=dict(name="vp"),
            score=dict(
                name="ncsnpp",
                channels=8 if quick else 256,
                channel_mult=(1, 1, 1),
                blocks=1 if quick else 8,
                fir=None,
                attention=(16,),
                embedding_dim=128,
                dropout=0.2,
            ),
            objective=dict(
                weighting="likelihood", mixing_logit_init=-6.0, inactive_kl=0.1, control_variate=False
            ),
            density=dict(name="optimal", weighting="likelihood", t_min=0.01),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=1e-4, clip=0.0, weight_decay=3e-4),
            vae_kl=dict(start=1e-4, end=1.0, constant=vae_steps // 10_000, steps=vae_steps, balanced=True),
            vae_penalty=dict(weight=1e-2),
            joint_vae=dict(name="adamw", learning_rate=1e-4, final=1e-5, warmup=warmup, eps=1e-3, **decay),
            joint_prior=dict(name="adamw", learning_rate=3e-4, final=3e-4, warmup=warmup, eps=1e-4, **decay),
            joint_kl=dict(start=0.7, steps=steps // 10),
            joint_vae_penalty=dict(weight=1e-2),
            joint_prior_penalty=dict(weight=1e-3),
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
            sampling=dict(t_min=1e-5),
            eval=dict(draws=1),
        )
    )
