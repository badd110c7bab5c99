"""First stages of latent diffusion: networks, posterior, quantiser, and the scale of the latents."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import sum_per_sample
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.ldm import Decoder, Encoder, Levels, unit_scale
from lsgm_jax.autoencoders.quantiser import Quantiser, usage
from lsgm_jax.interop.ldm_autoencoder import AutoencoderParts, first_stage_state, first_stage_variables
from tests.parity.cld import channels_first, channels_last

# The originals computed in float32, but for outputs with this ending.
IN_DOUBLE = "_float64"
SINGLE = 1e-5


def check(fixture, name, value):
    """To 1e-5 of the output's scale where the original's is float32; to 1e-9 what it also computed in float64."""
    fixture.check_scaled(name, value, rtol=SINGLE)
    if name + IN_DOUBLE in fixture.outputs():
        fixture.check_scaled(name + IN_DOUBLE, value)


def check_maps(fixture, name, maps):
    check(fixture, name, channels_first(maps))


def image(fixture, name):
    return channels_last(fixture.input(f"in/{name}"))


def parameters(fixture, prefix=""):
    """The state dict below a prefix, in the precision of the test."""
    prefix = f"param/{prefix}"
    names = (name for name in fixture.arrays if name.startswith(prefix))
    return {name.removeprefix(prefix): np.asarray(fixture.input(name)) for name in names}


def check_round_trip(state, back, left_out=()):
    assert back.keys() == {name for name in state if not name.endswith(tuple(left_out))}
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def float32_inputs(check):
    """Inputs and weights of these fixtures are float32 numbers: there is nothing to round, so no output can move."""

    @functools.wraps(check)
    def checked(fixture):
        return fixture.leave(fixture.outputs()) if fixture.slack == {} else check(fixture)

    return checked


@dataclasses.dataclass(frozen=True)
class Model:
    """A fixture's modules and weights."""

    parts: AutoencoderParts
    variables: dict

    def encode(self, x):
        """Features, and the maps before the last convolution."""
        encode = jax.jit(
            functools.partial(
                self.parts.encoder.apply,
                deterministic=True,
                capture_intermediates=lambda module, _: module.name == "trunk",
            )
        )
        features, seen = encode(self.variables["encoder"], x)
        return features, seen["intermediates"]["trunk"]["__call__"][0]

    def decode(self, *latents):
        """Each on its own; all at once, as most of the time is the compiler's."""
        decode = jax.jit(functools.partial(self.parts.decoder.apply, deterministic=True))
        images = decode(self.variables["decoder"], jnp.concatenate(latents))
        return jnp.split(images, len(latents))


def first_stage(fixture):
    h, state = fixture.spec["hyperparameters"], parameters(fixture)
    levels = Levels(
        channels=h["ch"],
        channel_mult=tuple(h["ch_mult"]),
        blocks=h["num_res_blocks"],
        attention=None if h.get("attn_type") == "none" else tuple(h["attn_resolutions"]),
        resolution=h["resolution"],
        dropout=h["dropout"],
    )
    doubled = 2 if h["double_z"] else 1
    parts = AutoencoderParts(
        Encoder(levels, trunk_channels=doubled * h["z_channels"], features=doubled * h["embed_dim"]),
        Decoder(levels, trunk_channels=h["z_channels"], out_channels=h["out_ch"]),
        Quantiser(entries=h["n_embed"], width=h["embed_dim"], beta=h["beta"]) if "n_embed" in h else None,
    )
    variables = first_stage_variables(state, parts)
    check_round_trip(state, first_stage_state(variables, parts))
    return Model(parts, jax.tree.map(jnp.asarray, variables))


@float32_inputs
def check_kl(fixture):
    model = first_stage(fixture)
    moments, trunk = model.encode(image(fixture, "image"))
    posterior = Gaussian.from_log_variance(moments)
    z = posterior.mean + jnp.exp(posterior.log_std) * image(fixture, "noise")
    decoded_sample, decoded_mode = model.decode(z, posterior.mean)
    for name, maps in {
        "encoder": trunk,
        "moments": moments,
        "mean": posterior.mean,
        "logvar": 2.0 * posterior.log_std,
        "sample": z,
        "decoded_sample": decoded_sample,
        "decoded_mode": decoded_mode,
    }.items():
        check_maps(fixture, name, maps)
    check(fixture, "kl_per_image", sum_per_sample(posterior.divergence_from_standard()))
    check(fixture, "nll_of_sample", -sum_per_sample(posterior.log_density(z)))
    check_posterior(fixture)


def check_posterior(fixture):
    first, posterior, other = (
        Gaussian.from_log_variance(image(fixture, f"dist/{name}"))
        for name in ("first_moments", "moments", "other_moments")
    )
    std = jnp.exp(posterior.log_std)
    for name, maps in (("logvar", 2.0 * posterior.log_std), ("std", std), ("var", std**2)):
        check_maps(fixture, f"dist/{name}", maps)
    check(fixture, "dist/kl", sum_per_sample(posterior.divergence_from_standard()))
    # A Gaussian's expected log density under another is that at the other's mean, less half its variance in its units.
    spread = 0.5 * jnp.exp(2.0 * (first.log_std - other.log_std))
    divergence = spread - other.log_density(first.mean) - first.entropy()
    check(fixture, "dist/kl_to_other", sum_per_sample(divergence))


@float32_inputs
def check_vq(fixture):
    model = first_stage(fixture)
    quantiser, codebook = model.parts.quantiser, model.variables["codebook"]
    z, latent = model.encode(image(fixture, "image"))[0], image(fixture, "latent")
    rounded, rounded_latent = quantiser(codebook, z), quantiser(codebook, latent)
    decoded, latent_decoded, unquantised = model.decode(rounded.values, rounded_latent.values, latent)
    for name, maps in {
        "prequant": z,
        "quantised": rounded.values,
        "decoded": decoded,
        "latent_decoded": latent_decoded,
        "latent_decoded_unquantised": unquantised,
    }.items():
        check_maps(fixture, name, maps)
    for name, indices in (("indices", rounded.indices), ("latent_indices", rounded_latent.indices)):
        fixture.check(name, indices.ravel())
    check(fixture, "codebook_loss", rounded.loss)
    used = usage(rounded.indices, quantiser.entries)
    check(fixture, "perplexity", used.perplexity)
    fixture.check("cluster_usage", used.used)
    check_quantiser_gradients(fixture, quantiser, codebook, z)


def check_quantiser_gradients(fixture, quantiser, codebook, z):
    for name, legacy in (("as_used", True), ("beta_on_commitment", False)):
        loss = lambda codebook, z, legacy=legacy: (
            dataclasses.replace(quantiser, legacy=legacy)(codebook, z).loss
        )
        value, (grad_codebook, grad_z) = jax.value_and_grad(loss, argnums=(0, 1))(codebook, z)
        check(fixture, f"loss_{name}", value)
        check(fixture, f"grad_codebook_{name}", grad_codebook)
        check_maps(fixture, f"grad_prequant_{name}", grad_z)
    cotangent = image(fixture, "cotangent")
    through = jax.grad(lambda z: jnp.sum(cotangent * quantiser(codebook, z).values))(z)
    check_maps(fixture, "grad_straight_through", through)


@float32_inputs
def check_scale(fixture):
    model = first_stage(fixture)
    posterior = Gaussian.from_log_variance(model.encode(fixture.input("in/image_nhwc"))[0])
    z = posterior.mean + jnp.exp(posterior.log_std) * image(fixture, "noise")
    scale = unit_scale(z)
    (decoded,) = model.decode((scale * z) / scale)
    for name, maps in (("z_unscaled", z), ("z_scaled", scale * z), ("decoded", decoded)):
        check_maps(fixture, name, maps)
    check(fixture, "std", 1.0 / scale)
    check(fixture, "scale_factor", scale)


CHECKS = {
    "ldm_autoencoder_kl": check_kl,
    "ldm_autoencoder_vq": check_vq,
    "ldm_scale_factor": check_scale,
}
