"""Score networks: LSGM's NCSN++ with its mixing, CLD's NCSN++ and MLP with its scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Phase
from lsgm_jax.interop.ncsnpp import (
    MIXING_LOGIT,
    lsgm_channel_mult,
    mixing_logit,
    mlp_variables,
    ncsnpp_state,
    ncsnpp_variables,
)
from lsgm_jax.models.score_model import mix
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.unet import sinusoidal_embedding
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import velocity_eps
from tests.parity.cld import channels_first, channels_last, cld_process
from tests.parity.processes import lsgm_process


def check(fixture, name, value, single_atol=0.0):
    """Errors are relative to the largest value of the output: 1e-9 in float64, 2e-5 in float32.

    In float32 more where the original itself moves by a third of it: where large angles of a time embedding round.
    """
    scale = np.abs(fixture.arrays[f"out/{name}"]).max()
    noise = fixture.spec["float32_noise"].get(f"out/{name}", [0.0])[0]
    single_atol = max(1e-5 * scale, 3.0 * noise, single_atol)
    fixture.check(name, value, rtol=0.0, atol=1e-9 * scale, single_atol=single_atol)


def state_dict(fixture):
    names = (name for name in fixture.arrays if name.startswith("param/"))
    return {name.removeprefix("param/"): np.asarray(fixture.input(name)) for name in names}


@functools.partial(jax.jit, static_argnums=0)
def evaluate(module, variables, z_t, t):
    return module.apply(variables, z_t, t, deterministic=True)


# LSGM


def image_side(dataset):
    sides = {"mnist": 32, "omniglot": 32, "cifar10": 32}
    return sides.get(dataset) or int(dataset.rsplit("_", 1)[-1])


def lsgm_shape(h):
    """Of the latents, as our networks take them."""
    side = image_side(h["dataset"]) // 2 ** (h["num_preprocess_blocks"] + h["num_latent_scales"] - 1)
    return side, side, h["num_input_channels"]


def lsgm_net(h):
    assert (h["progressive"], h["progressive_input"], h["embedding_type"]) == ("none", "none", "positional")
    return NCSNpp(
        out_channels=h["num_input_channels"],
        channels=h["num_channels_dae"],
        channel_mult=lsgm_channel_mult(h["dataset"], h["num_scales_dae"]),
        blocks=h["num_cell_per_scale_dae"],
        attention=(16,),
        dropout=h["dropout"],
        fir=(1.0, 3.0, 3.0, 1.0) if h["fir"] else None,
        embedding_scale=float(h["embedding_scale"]),
        embedding_dim=h["embedding_dim"],
    )


def check_lsgm(fixture):
    h, state = fixture.spec["hyper_parameters"], state_dict(fixture)
    module, shape = lsgm_net(h), lsgm_shape(h)
    variables = ncsnpp_variables(state, module, shape)
    check_round_trip(state, ncsnpp_state(variables, module, shape))

    z_t, t = channels_last(fixture.input("in/x")), fixture.input("in/t")
    active = fixture.input("in/is_active") if "in/is_active" in fixture.arrays else jnp.ones(z_t.shape[-1])
    # One evaluation for both kinds of time: most of the test is the compiler.
    both = jnp.concatenate([t, jnp.full_like(t, fixture.input("in/t_scalar"))])
    net_eps, same_time = jnp.split(evaluate(module, variables, jnp.tile(active * z_t, (2, 1, 1, 1)), both), 2)
    features = sinusoidal_embedding(t, h["embedding_dim"], module.embedding_scale)
    # In float32 an angle of 1000 has three digits after the point.
    check(fixture, "time_embedding", features, single_atol=module.embedding_scale * 2**-23)
    check(fixture, "net", channels_first(net_eps))
    check(fixture, "net_scalar_t", channels_first(same_time))
    check_mixing(fixture, h, state, z_t, t, net_eps)


def check_mixing(fixture, h, state, z_t, t, net_eps):
    if not h["mixed_prediction"]:
        check(fixture, "final_prediction", channels_first(net_eps))
        return
    logit = jnp.asarray(mixing_logit(state))
    np.testing.assert_array_equal(logit[jnp.asarray(h["inactive"] or [], int)], -15.0)
    gaussian_eps = linear.gaussian_eps(lsgm_process(h["sde"]), z_t, t)
    check(fixture, "mixing_component", channels_first(gaussian_eps))
    one, zero = jnp.ones((1, len(logit))), jnp.zeros((1, len(logit)))
    check(fixture, "mixing_coefficient", mix(logit, zero, one)[0])
    check(fixture, "final_prediction", channels_first(mix(logit, gaussian_eps, net_eps)))


def check_round_trip(state, back):
    assert back.keys() == state.keys() - {MIXING_LOGIT}
    for name, value in back.items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


# CLD


def numbers(text, kind=int):
    return tuple(kind(part) for part in str(text).split(",") if part)


def cld_net(net):
    assert net["nonlinearity"] == "swish"
    assert (net["resblock_type"], net["progressive"]) == ("biggan", "none")
    return NCSNpp(
        out_channels=net["image_channels"],
        channels=net["n_channels"],
        channel_mult=numbers(net["ch_mult"]),
        blocks=net["n_resblocks"],
        attention=numbers(net["attn_resolutions"]),
        dropout=net["dropout"],
        fir=numbers(net["fir_kernel"], float) if net["use_fir"] else None,
        embedding=net["embedding_type"],
        embedding_scale=float(net["fourier_scale"]) if net["embedding_type"] == "fourier" else 1.0,
        input_pyramid=net["progressive_input"],
        rescale=net["skip_rescale"],
        init_scale=net["init_scale"],
    )


def cld_module(h, state):
    """The module of a fixture's hyper-parameters, and the shape of one input; only the MLP's depth is the weights'."""
    if h["arch"] == "mlp":
        return MLP(h["dim"], hidden=(h["hidden_dim"],) * (len(state) // 2 - 1)), (2 * h["dim"],)
    net = h["net"]
    return cld_net(net), (net["image_size"], net["image_size"], 2 * net["image_channels"])


def check_cld(fixture):
    h, state = fixture.spec["hyper_parameters"], state_dict(fixture)
    module, shape = cld_module(h, state)
    if isinstance(module, MLP):
        variables = mlp_variables(state, module, *shape)
    else:
        variables = ncsnpp_variables(state, module, shape)
        check_round_trip(state, ncsnpp_state(variables, module, shape))

    u, t, process = channels_last(fixture.input("in/u")), fixture.input("in/t"), cld_process(h["sde"])
    net_eps = evaluate(module, variables, u, t)
    mixed = net_eps + velocity_eps(process, Phase(*jnp.split(u, 2, axis=-1)), t)
    check(fixture, "net", channels_first(net_eps))
    check(fixture, "score_plain", channels_first(linear.score_of_eps(process, net_eps, t)))
    check(fixture, "score_mixed", channels_first(linear.score_of_eps(process, mixed, t)))


CHECKS = {"ncsnpp": check_lsgm, "net": check_cld}
