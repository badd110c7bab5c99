"""Latent diffusion as published: ten priors and nine first stages (Rombach et al. 2022).

lsgm train --config=configs/ldm.py:celebahq256 --workdir=runs/ldm_celebahq256
lsgm train --config=configs/ldm.py:kl-f8 --workdir=runs/kl-f8 --config.data.source=PATH

Priors at 256 x 256, with parameters, training steps, and FID at steps of DDIM (authors' README or Table 18):
    :celebahq256         on vq-f4, 274 M, 410,000 steps       FID 5.11 at 200 evaluations
    :ffhq256             on vq-f4, 274 M, 635,000 steps       FID 4.98 at 200, eta 1
    :bedrooms256         on vq-f4, 274 M, 1.9 million steps   FID 2.95 at 200, eta 1
    :churches256         on kl-f8, 295 M, 500,000 steps       FID 4.02 at 400, 500 in the authors' code
    :imagenet256         class-conditional, on vq-f8, 395 M          FID 15.82 at 200, eta 1, without guidance
    :imagenet256_guided  class-conditional, on vq-f4, 401 M          FID 3.60 at 250, guidance 1.5
    :text2img            text-conditional, on kl-f8, 872 M and 543 M of the text encoder
    :text2img256         text-conditional, on vq-f4, 404 M and 167 M  FID 16.79 at 100, on Conceptual Captions
    :upscaling           super-resolution by four, on vq-f4, 114 M
    :inpainting          on vq-f4-noattn, 387 M
First stages, with the FID of their reconstructions: kl-f4 (0.27), kl-f8 (0.90), kl-f16 (0.87), kl-f32 (2.04), vq-f4
(0.58), vq-f4-noattn (1.06), vq-f8 (1.14), vq-f8-n256 (1.49), vq-f16 (5.15). Selected alone, a first stage is followed
by a small unconditional prior without published results.

Paper: one A100 for each (inpainting: eight V100), for 7 days (churches: 8, bedrooms: 27, imagenet256_guided: 123).
Data: lsgm data prepare celebahq256 --source=PATH; all others by
lsgm data prepare folder --source=PATH --name=NAME --size=256, with the NAME below.
The published first stages are trained on OpenImages: convert one (docs/howto/convert.md), or set
config.train.first_stage_from to a run that has one. Otherwise a run trains its own; set config.perceptual.weights.
The recipe is the published one as far as it is known; docs/howto/ldm.md lists the differences.
"""

from ml_collections import ConfigDict

# `mult` multiplies the width, `z` are the channels of the latents, `batch` the images per step. With a codebook:
# its `entries`, and for the GANLoss the `layers` of the discriminator, the `start` step and the `weight`.
FIRST_STAGES = {
    "kl-f4": dict(mult=(1, 2, 4), z=3, batch=10, steps=176_991),
    "kl-f8": dict(mult=(1, 2, 4, 4), z=4, batch=4, steps=246_803),
    "kl-f16": dict(mult=(1, 1, 2, 2, 4), z=16, attention=(16,), batch=6, steps=442_998),
    "kl-f32": dict(mult=(1, 1, 2, 2, 4, 4), z=64, attention=(16, 8), batch=6, steps=406_763),
    "vq-f4": dict(mult=(1, 2, 4), z=3, entries=8192, start=0, batch=8, steps=533_066),
    "vq-f4-noattn": dict(mult=(1, 2, 4), z=3, attention=None, entries=8192, start=11, batch=8, steps=658_131),
    "vq-f8": dict(
        **dict(mult=(1, 2, 2, 4), z=4, attention=(32,), entries=16_384),
        **dict(start=1, weight=0.6, layers=2, batch=10, steps=971_043),
    ),
    "vq-f8-n256": dict(
        mult=(1, 2, 2, 4), z=4, attention=(32,), entries=256, start=250_001, batch=10, steps=1_608_649
    ),
    "vq-f16": dict(
        **dict(mult=(1, 1, 2, 2, 4), z=8, attention=(16,), entries=16_384),
        **dict(start=250_001, layers=2, batch=14, steps=1_101_166),
    ),
}
UNCONDITIONAL = dict(channels=224, channel_mult=(1, 2, 3, 4), attention=(8, 4, 2), head_width=32)
# `rate` is the effective learning rate of Adam for this batch size; `source` is the name of the data set.
PRIORS = {
    "celebahq256": dict(
        **dict(first_stage="vq-f4", source="celebahq256", splits=("train", "validation", "validation")),
        **dict(score=UNCONDITIONAL, batch=48, rate=2e-6 * 48, steps=410_000),
    ),
    "ffhq256": dict(
        **dict(first_stage="vq-f4", source="ffhq256", score=UNCONDITIONAL),
        **dict(batch=42, rate=2e-6 * 42, steps=635_000, eta=1.0),
    ),
    "bedrooms256": dict(
        **dict(first_stage="vq-f4", source="lsun_bedrooms256", flip=True, score=UNCONDITIONAL),
        **dict(batch=48, rate=2e-6 * 48, steps=1_900_000, eta=1.0),
    ),
    "churches256": dict(
        **dict(first_stage="kl-f8", latent_scale=0.0, source="lsun_churches256", flip=True),
        score=dict(
            **dict(channels=192, channel_mult=(1, 2, 2, 4, 4), attention=(1, 2, 4, 8), heads=8),
            **dict(scale_shift=True, resample_in_blocks=True),
        ),
        **dict(last=0.0155, norm="l1", evaluations=500),
        **dict(batch=96, rate=5e-5, schedule=dict(warmup=10_000, start=5e-11), steps=500_000),
    ),
    "imagenet256": dict(
        **dict(first_stage="vq-f8", source="imagenet256"),
        score=dict(channels=256, channel_mult=(1, 2, 4), attention=(4, 2, 1), head_width=32),
        conditioning=dict(name="labels", classes=1000, width=512, dropout=0.0),
        **dict(batch=64, rate=1e-6 * 64, steps=2_900_000, eta=1.0),
    ),
    "imagenet256_guided": dict(
        **dict(first_stage="vq-f4", source="imagenet256"),
        score=dict(channels=192, channel_mult=(1, 2, 3, 5), attention=(8, 4, 2), heads=1),
        conditioning=dict(name="labels", classes=1000, width=512, dropout=0.1),
        **dict(batch=1200, rate=1e-4, steps=178_000, evaluations=250, guidance=1.5),
    ),
    "text2img": dict(
        **dict(first_stage="kl-f8", latent_scale=0.18215, source="laion256"),
        score=dict(channels=320, channel_mult=(1, 2, 4, 4), attention=(4, 2, 1), heads=8),
        conditioning=dict(name="text", width=1280, layers=32, dropout=0.1),
        **dict(first=0.00085, last=0.012, batch=680, rate=1e-4, steps=390_000, guidance=5.0),
    ),
    "text2img256": dict(
        **dict(first_stage="vq-f4", source="laion256"),
        score=dict(channels=192, channel_mult=(1, 2, 3, 5), attention=(8, 4, 2), head_width=32),
        conditioning=dict(name="text", width=640, layers=32, dropout=0.1),
        **dict(batch=28, rate=2e-6 * 28, steps=390_000, evaluations=100),
    ),
    "upscaling": dict(
        **dict(first_stage="vq-f4", source="openimages256", last=0.0155),
        score=dict(channels=160, channel_mult=(1, 2, 2, 4), attention=(8,), head_width=32),
        conditioning=dict(name="upscaling"),
        **dict(batch=64, rate=1e-6 * 64, steps=860_000, evaluations=100),
    ),
    "inpainting": dict(
        **dict(first_stage="vq-f4-noattn", source="places256", last=0.0205, norm="l1"),
        score=dict(
            **dict(channels=256, channel_mult=(1, 2, 3, 4), attention=(8, 4, 2), heads=8),
            **dict(resample_in_blocks=True),
        ),
        conditioning=dict(name="inpainting"),
        schedule=dict(warmup=1000, start=1e-9 * 128, final=1e-10 * 128, decay_steps=50_000),
        **dict(batch=128, rate=1e-7 * 128, steps=360_000, evaluations=50),
    ),
}
# The prior after a first stage that is selected alone.
OWN = dict(
    **dict(source="openimages256", latent_scale=0.0, rate=5e-5, steps=200_000),
    score=dict(channels=128, channel_mult=(1, 2), attention=(1, 2), head_width=32),
)
BERT = dict(pieces=30_522, length=77, empty=(101, 102), vocabulary="bert-base-uncased-vocab.txt")


def get_config(arg: str = "celebahq256") -> ConfigDict:
    """Builds the config.

    Args:
        arg: a prior or a first stage of the lists; with ",quick" a run of minutes at tiny widths.
    """
    variant, _, speed = arg.partition(",")
    if variant not in (*PRIORS, *FIRST_STAGES) or speed not in ("", "quick"):
        variants = ", ".join((*PRIORS, *FIRST_STAGES))
        raise ValueError(f"configs/ldm.py takes one of {variants}, also with ',quick', not {arg!r}")
    quick = speed == "quick"
    prior = PRIORS.get(variant) or OWN | dict(first_stage=variant, batch=FIRST_STAGES[variant]["batch"])
    first_stage = FIRST_STAGES[prior["first_stage"]]
    conditioning = prior.get("conditioning", dict(name="none"))
    if conditioning["name"] == "text":
        conditioning = conditioning | (dict(width=64, layers=1, pieces=500) if quick else BERT)
    tiny = dict(channels=32, channel_mult=(1, 2)) if quick else {}
    return ConfigDict(
        dict(
            model="ldm",
            seed=0,
            data=dict(
                source=prior["source"],
                image_shape=(64, 64, 3) if quick else (256, 256, 3),
                fit="crop",
                flip=prior.get("flip", False),
                batch_size=8 if quick else prior["batch"],
                splits=prior.get("splits", ("train", "validation", "test")),
            ),
            **first_stage_sections(first_stage, quick),
            process=dict(
                name="discrete_vp", first=prior.get("first", 0.0015), last=prior.get("last", 0.0195)
            ),
            conditioning=conditioning,
            score=dict(name="ldm", blocks=1 if quick else 2, **prior["score"] | tiny),
            objective=dict(
                weighting="unweighted",
                spread="independent",
                norm=prior.get("norm", "l2"),
                latent_scale=prior.get("latent_scale", 1.0),
            ),
            density=dict(name="timesteps"),
            optimiser=dict(
                name="adamw",
                learning_rate=prior["rate"],
                **dict(clip=0.0, weight_decay=1e-2, decay_all=True, warmup=0) | prior.get("schedule", {}),
            ),
            train=dict(
                first_stage_steps=20 if quick else first_stage["steps"],
                steps=20 if quick else prior["steps"],
                ema_first_stage=False,
                log_every=10 if quick else 100,
                eval_every=10 if quick else 5000,
            ),
            solver=dict(name="DDIM", eta=prior.get("eta", 0.0)),
            steps=dict(name="linear", steps=prior.get("evaluations", 200)),
            sampling=dict(t_min=1e-3, guidance=prior.get("guidance", 1.0)),
            eval=dict(batch_size=16),
        )
    )


def first_stage_sections(spec: dict, quick: bool) -> dict:
    """Returns the sections of a first stage and its training; the learning rate is for the published batch size."""
    kind = dict(name="vq", entries=64 if quick else spec["entries"]) if "entries" in spec else dict(name="kl")
    return dict(
        autoencoder=dict(
            **kind,
            channels=32 if quick else 128,
            channel_mult=(1,) * len(spec["mult"]) if quick else spec["mult"],
            blocks=1 if quick else 2,
            latent_channels=spec["z"],
            attention=spec.get("attention", ()),
        ),
        discriminator=dict(channels=8 if quick else 64, layers=spec.get("layers", 3)),
        gan_loss=dict(start=spec["start"], weight=spec.get("weight", 0.75)) if "entries" in spec else {},
        first_stage=dict(
            name="adam", learning_rate=4.5e-6 * spec["batch"], warmup=0, b1=0.5, b2=0.9, clip=0.0
        ),
    )
