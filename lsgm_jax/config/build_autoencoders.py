"""Config -> what is between images and latents: VAEs, first stages, and the gan_loss that trains these."""

import functools
from typing import cast

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import Images, PerSample
from lsgm_jax.autoencoders.backbones import Flat, Hierarchical
from lsgm_jax.autoencoders.bottlenecks import Bottleneck, CodebookBottleneck, GaussianBottleneck
from lsgm_jax.autoencoders.conv import ConvDecoder, ConvEncoder
from lsgm_jax.autoencoders.ldm import Decoder, Encoder
from lsgm_jax.autoencoders.likelihoods import Likelihood, shown
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.autoencoders.quantiser import Quantiser
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.config.specs import KLSpec, PerceptualSpec, VQSpec
from lsgm_jax.errors import ConfigError, ConversionError
from lsgm_jax.interop.lpips_file import read_lpips
from lsgm_jax.models.first_stage import AdversarialTraining, Distance, FirstStage
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Network, Params, StatefulNetwork
from lsgm_jax.objectives.gan import KLFirstStage, VQFirstStage


def build_vae(config: Config) -> VAE:
    """The autoencoder with its likelihood."""
    image_shape = build("data", config).image_shape
    likelihood = build("likelihood", config, levels=config.data.levels)
    features = _count_features(likelihood, image_shape)
    seen = jax.eval_shape(lambda: shown(likelihood, jnp.zeros((1, *image_shape))))
    make = _hierarchical if config.autoencoder.name == "nvae" else _flat
    backbone = make(config, seen.shape[1:], features)
    return VAE(
        image_shape=image_shape, latent_shape=backbone.latent_shape, backbone=backbone, likelihood=likelihood
    )


def _flat(config: Config, image_shape: tuple[int, int, int], features: int) -> Flat:
    spec, compute = build("autoencoder", config), build("compute", config)
    height, width, _ = image_shape
    shrink = 2 ** (len(spec.channels) - 1)
    if height % shrink or width % shrink:
        raise ConfigError(
            f"config.data.image_shape={image_shape} cannot be halved {len(spec.channels) - 1} times: "
            "resize the images or give config.autoencoder.channels fewer entries"
        )
    encoder = ConvEncoder(spec.channels, spec.blocks, spec.latent_channels, spec.dropout)
    decoder = ConvDecoder(spec.channels, spec.blocks, features, spec.dropout)
    return Flat(
        image_shape=image_shape,
        latent_shape=(height // shrink, width // shrink, spec.latent_channels),
        encoder=Network(encoder, compute),
        decoder=Network(decoder, compute),
    )


def _hierarchical(config: Config, image_shape: tuple[int, int, int], features: int) -> Hierarchical:
    net = build("autoencoder", config, out_channels=features)
    try:
        return Hierarchical(image_shape=image_shape, net=net, compute=build("compute", config))
    except ValueError as error:
        raise ConfigError(f"config.autoencoder: {error}") from error


def _count_features(likelihood: Likelihood, image_shape: tuple[int, ...]) -> int:
    """Features per pixel; tries the likelihood on shapes, so that it can refuse images it does not fit."""
    try:
        features = likelihood.channels(image_shape[-1])
        shapes = (
            jax.ShapeDtypeStruct((1, *image_shape[:-1], c), jnp.float32) for c in (features, image_shape[-1])
        )
        jax.eval_shape(likelihood.log_prob, *shapes)
    except ValueError as error:
        raise ConfigError(f"config.likelihood: {error}") from error
    return features


def build_first_stage(config: Config) -> FirstStage:
    """An LDM's autoencoder."""
    spec, compute = build("autoencoder", config), build("compute", config)
    image_shape = build("data", config).image_shape
    height, width, channels = image_shape
    if height % spec.factor or width % spec.factor:
        raise ConfigError(
            f"config.data.image_shape={image_shape} cannot be halved {len(spec.channel_mult) - 1} times: "
            "resize the images or give config.autoencoder.channel_mult fewer entries"
        )
    bottleneck = _bottleneck(spec)
    encoder = Encoder(spec, trunk_channels=bottleneck.features, features=bottleneck.features)
    decoder = Decoder(spec, trunk_channels=spec.latent_channels, out_channels=channels)
    return FirstStage(
        image_shape=image_shape,
        latent_shape=(height // spec.factor, width // spec.factor, spec.latent_channels),
        encoder=Network(encoder, compute),
        decoder=Network(decoder, compute),
        bottleneck=bottleneck,
    )


def _bottleneck(spec: KLSpec | VQSpec) -> Bottleneck:
    if isinstance(spec, KLSpec):
        return GaussianBottleneck(latent_channels=spec.latent_channels)
    try:
        quantiser = Quantiser(
            entries=spec.entries, width=spec.latent_channels, beta=spec.beta, legacy=spec.legacy
        )
    except ValueError as error:
        raise ConfigError(f"config.autoencoder: {error}") from error
    return CodebookBottleneck(quantiser=quantiser)


def build_adversarial_training(config: Config, first_stage: FirstStage) -> AdversarialTraining:
    """What trains an LDM's first stage."""
    spec, perceptual = build("autoencoder", config), build("perceptual", config)
    if isinstance(spec, KLSpec):
        criterion = KLFirstStage(kl_weight=spec.kl_weight)
    else:
        criterion = VQFirstStage(codebook_weight=spec.codebook_weight)
    return AdversarialTraining(
        first_stage=first_stage,
        discriminator=StatefulNetwork(build("discriminator", config), build("compute", config)),
        criterion=criterion,
        gan_loss=build("gan_loss", config),
        perceptual=_perceptual(perceptual),
        perceptual_weight=perceptual.weight,
    )


def _perceptual(spec: PerceptualSpec) -> Distance | None:
    """The distance, whose weights are read when it is first used: what is trained already does without the file.

    They are constants of the compiled step, 59 MB of them: on a CPU that costs a second when it is compiled, and
    nothing in a step.
    """
    if not spec.weights or not spec.weight:
        return None

    @functools.cache
    def variables() -> Params:
        try:
            return read_lpips(spec.weights)
        except ConversionError as error:
            raise ConfigError(f"config.perceptual.weights: {error}") from error

    def distance(x: Images, x_hat: Images) -> PerSample:
        return cast(PerSample, LPIPS().apply(variables(), x, x_hat))

    return distance
