"""LSGM on MNIST, binarised, as published (Vahdat, Kreis, Kautz 2021), and a version for an hour on two CPU cores.

lsgm train --config=configs/lsgm_mnist.py --workdir=runs/lsgm_mnist
lsgm train --config=configs/lsgm_mnist.py:small --workdir=runs/lsgm_mnist_small
lsgm train --config=configs/lsgm_mnist.py:cld --workdir=runs/lsgm_cld_mnist

Paper: 2 V100 (16 GB) for the VAE, 4 for the joint stage; NELBO at most 78.47 nats.
Data: lsgm data prepare mnist --source=FOLDER with the IDX files. Images are padded to 32 x 32 and binarised dynamically
in training; validation and test use one fixed draw per image (the published runs binarise them dynamically, too).

The recipe is the published one; docs/howto/lsgm.md lists the differences. ":small" has narrow networks and a small
latent (4 x 4 x 8), and trains its prior like configs/digits.py. ":cld" is LSGM-CLD, critically-damped Langevin
diffusion as the jointly trained prior of the same VAE; no published results.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for the published run, "small" for an hour on two CPU cores, "quick" for minutes at tiny widths; "cld",
            "cld,small" and "cld,quick" for the same with CLD as the prior.
    """
    words = arg.split(",") if arg else []
    cld = words[:1] == ["cld"]
    size = ",".join(words[1:] if cld else words)
    if size not in ("", "small", "quick"):
        raise ValueError(
            f"configs/lsgm_mnist.py takes '', 'small' or 'quick', also after 'cld,', not {arg!r}"
        )

    def pick(published, small, quick):
        return {"": published, "small": small, "quick": quick}[size]

    small = size == "small"
    decay = dict(clip=0.0, weight_decay=3e-4, decay_all=True)
    vae_steps, steps = pick(60_000, 4000, 20), pick(374_400, 8000, 20)
    warmup = pick(9360, 200, 2)
    return ConfigDict(
        dict(
            seed=1,
            data=dict(
                source="mnist",
                image_shape=(32, 32, 1),
                levels=2,
                pad=2,
                binarise="dynamic",
                batch_size=pick(128, 32, 16),
                splits=("train", "test", "test"),
            ),
            autoencoder=dict(
                name="nvae",
                groups_per_scale=2,
                latent_channels=pick(20, 4, 2),
                encoder_channels=pick(64, 16, 8),
                decoder_channels=pick(64, 16, 8),
                channel_mult=(1, 2, 4, 4) if small else (1, 2, 2),
                pre_blocks=3 if small else 2,
                pre_cells=pick(3, 1, 3),
                post_blocks=3 if small else 2,
                post_cells=pick(3, 1, 3),
                encoder_cells=1,
                decoder_cells=1,
                arch="res_bnswish" if small else "res_mbconv",
            ),
            likelihood=dict(name="cropped_bernoulli"),
            # A velocity that starts in equilibrium has the better likelihood on the digits (docs/howto/cld.md).
            process=dict(name="cld", v0_var_scale=1.0) if cld else dict(name="vp"),
            score=dict(
                name="ncsnpp",
                channels=pick(256, 64, 8),
                channel_mult=(1,) if small else (1, 1),
                blocks=pick(8, 2, 1),
                fir=None,
                attention=(16,),
                embedding_dim=128,
                embedding_scale=100.0 if small else 1000.0,
                dropout=pick(0.2, 0.1, 0.2),
            ),
            objective=dict(
                mixed_score="gaussian" if cld else "none",
                **(
                    dict(weighting="unweighted", mixing_logit_init=0.0)
                    if small
                    else dict(
                        weighting="likelihood", mixing_logit_init=-6.0, inactive_kl=0.1, control_variate=False
                    )
                ),
            ),
            density=(
                dict(name="uniform", t_min=1e-3)
                if small
                else dict(name="optimal", weighting="likelihood", t_min=0.01)
            ),
            vae_stage=dict(name="adamax", learning_rate=1e-2, final=1e-4, clip=0.0, weight_decay=3e-4),
            vae_kl=dict(
                start=1e-4,
                end=1.0 if small else 0.7,
                constant=vae_steps // 10_000,
                steps=2000 if small else vae_steps,
                balanced=True,
            ),
            vae_penalty=dict(weight=1e-2),
            joint_vae=dict(
                name="adamw",
                learning_rate=pick(1e-4, 3e-4, 1e-4),
                final=1e-5,
                warmup=warmup,
                eps=1e-3,
                **decay,
            ),
            joint_prior=dict(
                name="adamw",
                learning_rate=pick(3e-4, 1e-3, 3e-4),
                final=pick(3e-4, 1e-4, 3e-4),
                warmup=warmup,
                eps=pick(1e-4, 1e-8, 1e-4),
                **decay,
            ),
            joint_kl=dict(start=0.4 if small else 0.7, steps=2000 if small else steps // 10),
            joint_vae_penalty=dict(weight=1e-2),
            joint_prior_penalty=dict(weight=0.0),
            train=dict(
                vae_steps=vae_steps,
                steps=steps,
                # EMA of the prior's parameters; of the VAE's only in ":small".
                ema_decay=pick(0.9999, 0.999, 0.9999),
                ema_warmup=bool(size),
                ema_vae=small,
                log_every=pick(100, 50, 10),
                eval_every=pick(5000, 500, 10),
            ),
            solver=dict(name="Dopri5"),
            steps=dict(name="adaptive", rtol=1e-5, atol=1e-5, per="batch"),
            sampling=dict(t_min=1e-3 if small else 1e-5),
            eval=dict(draws=pick(1, 4, 1)),
        )
    )
