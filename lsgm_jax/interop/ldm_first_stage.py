"""Parameters of an LDM's first stage and of its discriminator, from the official state dicts."""

import contextlib
from collections.abc import Iterator

from lsgm_jax.arrays import Params
from lsgm_jax.autoencoders.bottlenecks import CodebookBottleneck
from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.ldm import Decoder, Encoder
from lsgm_jax.errors import ConversionError
from lsgm_jax.interop.ldm_autoencoder import AutoencoderParts, discriminator_variables, first_stage_variables
from lsgm_jax.interop.tables import State, as_float32
from lsgm_jax.models.first_stage import FirstStage
from lsgm_jax.nn.network import StatefulNetwork


def first_stage_params(state: State, first_stage: FirstStage) -> Params:
    """Returns the parameters of a first stage, float32 copies.

    Raises:
        ConversionError: if the kind of bottleneck differs, or for the reasons of `first_stage_variables`.
    """
    encoder, decoder, bottleneck = (
        first_stage.encoder.module,
        first_stage.decoder.module,
        first_stage.bottleneck,
    )
    assert isinstance(encoder, Encoder)
    assert isinstance(decoder, Decoder)
    quantiser = bottleneck.quantiser if isinstance(bottleneck, CodebookBottleneck) else None
    kinds = {True: "a codebook (vq)", False: "a narrow Gaussian (kl)"}
    stored = "quantize.embedding.weight" in state
    if stored != (quantiser is not None):
        raise ConversionError(
            f"its first stage has {kinds[stored]}, not {kinds[not stored]}: set config.autoencoder.name"
        )
    with about("its first stage is not that of config.autoencoder"):
        variables = as_float32(first_stage_variables(state, AutoencoderParts(encoder, decoder, quantiser)))
    return {
        name: part["params"] if name in ("encoder", "decoder") else part for name, part in variables.items()
    }


def discriminator_params(state: State, discriminator: StatefulNetwork) -> Params:
    """Returns the parameters of a discriminator, float32 copies, with its running statistics under "state".

    Raises:
        ConversionError: for the reasons of `discriminator_variables`.
    """
    module = discriminator.module
    assert isinstance(module, PatchDiscriminator)
    with about("its discriminator is not that of config.discriminator"):
        variables = as_float32(discriminator_variables(state, module))
    return {"net": variables.pop("params"), "state": variables}


@contextlib.contextmanager
def about(what: str) -> Iterator[None]:
    """Prefixes a `ConversionError` with its subject."""
    try:
        yield
    except ConversionError as error:
        raise ConversionError(f"{what}: {error}") from error
