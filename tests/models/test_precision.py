"""bfloat16 between layers, float32 wherever it decides; and blocks computed twice instead of kept."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lsgm_jax.autoencoders.conv import ConvDecoder, ConvEncoder
from lsgm_jax.conditioning.text import Texts
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import complete, differences, load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.model_size import flops_by_dtype
from lsgm_jax.nn.convolution import KERNEL, MAPS, OUTPUT
from lsgm_jax.nn.dit import DiT
from lsgm_jax.nn.layers import attend
from lsgm_jax.nn.ldm import LDMUNet
from lsgm_jax.nn.mlp import MLP
from lsgm_jax.nn.ncsnpp import NCSNpp
from lsgm_jax.nn.network import Compute, Network, StatefulNetwork, trainable
from lsgm_jax.nn.unet import UNet
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.train import MAY_CHANGE
from tests import tiny

CONVOLUTIONS = (OUTPUT, MAPS, KERNEL)
BFLOAT16 = Compute(dtype="bfloat16")
PLAIN = Compute()
T = (3,)
NCSNPP = dict(out_channels=3, channels=8, channel_mult=(1, 2), blocks=1, attention=(4,), dropout=0.0)


class Case(NamedTuple):
    """A module, the shapes of its inputs, maps first, and how many of its products see the time or a flow's latent."""

    module: nn.Module
    shapes: tuple
    in_float32: int


CASES = {
    # Two layers embed the time, and each residual block shifts its features by it.
    "unet": Case(UNet(3, (8, 16), 1, (4,), 0.1), ((3, 8, 8, 4), T), 2 + 8),
    "unet_class": Case(UNet(3, (8, 16), 1, (4,), 0.1), ((3, 8, 8, 4), T, (3, 1, 5)), 3 + 8),
    "ncsnpp": Case(NCSNpp(**NCSNPP), ((3, 8, 8, 4), T), 2 + 10),
    "ncsnpp_cld": Case(
        NCSNpp(**NCSNPP, embedding="fourier", embedding_scale=16.0, input_pyramid="residual"),
        ((3, 8, 8, 4), T),
        2 + 10,
    ),
    "ldm": Case(
        LDMUNet(3, 32, (1, 2), 1, (2,), heads=2, scale_shift=True, resample_in_blocks=True),
        ((3, 8, 8, 4), T),
        2 + 10,
    ),
    "ldm_text": Case(
        LDMUNet(3, 32, (1, 2), 1, (2,), head_width=16, context_width=5), ((3, 8, 8, 4), T, (3, 2, 5)), 2 + 8
    ),
    # Beside what embeds time and context, what adapts each block and the end to them.
    "dit_text": Case(
        DiT(3, width=16, depth=2, heads=2, dropout=0.1, cross_attention=True),
        ((3, 8, 8, 4), T, (3, 2, 5)),
        3 + 3,
    ),
    "mlp": Case(MLP(2, (32, 32, 32), time_octaves=3), ((3, 4), T), 1),
    "encoder": Case(ConvEncoder((8, 16), 1, 2, 0.1), ((3, 8, 8, 1),), 0),
    "decoder": Case(ConvDecoder((8, 16), 1, 2, 0.1), ((3, 4, 4, 2),), 0),
}
NVAES = {
    "bnswish": tiny.nvae(arch="res_bnswish"),
    "mbconv": tiny.nvae(arch="res_mbconv"),
    "flows": tiny.nvae(arch="res_bnswish", flows=1),
}
# Their gradients take the compiler 7 to 11 CPU s in each precision.
LARGE = ("ncsnpp_cld", "ldm_text", "mbconv", "flows")


def drawn(shapes, seed=0):
    """Parameters of these shapes, no layer zero, variances and scales about one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("var", "scale"):
            return jnp.asarray(rng.uniform(0.7, 1.3, leaf.shape), jnp.float32)
        spread = 1.0 / math.sqrt(math.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 0.1
        return jnp.asarray(spread * rng.normal(size=leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs_of(shapes, key=0):
    """Maps are Gaussian, times and contexts between 0 and 1."""
    maps, *others = shapes
    rng = np.random.default_rng(key)
    z = jnp.asarray(rng.normal(size=maps), jnp.float32)
    return (z, *(jnp.linspace(0.05, 0.95, math.prod(shape)).reshape(shape) for shape in others))


@functools.cache
def scores_case(name):
    """Forward pass in training of (compute, params, *inputs), parameters and inputs."""
    case, inputs = CASES[name], inputs_of(CASES[name].shapes)
    params = drawn(jax.eval_shape(Network(case.module).init, jax.random.key(0), *inputs))

    def forward(compute, params, *inputs):
        return Network(case.module, compute).apply(params, *inputs, dropout_key=jax.random.key(1))

    return forward, params, inputs


@functools.cache
def nvae_case(name):
    """As `scores_case`; the pass gives features, groups and what is state."""
    module = NVAES[name]
    x = inputs_of(((3, 8, 8, 1),))[0]
    noises = [inputs_of(((3, *s),), i)[0] for i, s in enumerate(module.latent_shapes((8, 8, 1)))]
    params = drawn(jax.eval_shape(StatefulNetwork(module).init, jax.random.key(0), x, noises))

    def forward(compute, params, *inputs):
        output, state, _ = StatefulNetwork(module, compute).apply(params, *inputs, train=True)
        return output.features, output.groups, state

    return forward, params, (x, noises)


def case_of(name):
    return nvae_case(name) if name in NVAES else scores_case(name)


def relative(value, exact):
    """Root mean square of the difference over that of `exact`, all leaves together."""
    value, exact = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (value, exact)
    )
    return np.linalg.norm(value - exact) / np.linalg.norm(exact)


def squares(output):
    """A loss to differentiate: all outputs but what is state."""
    output = output[:2] if isinstance(output, tuple) else output
    return sum(jnp.mean(leaf**2) for leaf in jax.tree.leaves(output))


@functools.cache
def ran(name, compute, train=True):
    """What the network gives, and the gradient of `squares` in training."""
    forward, params, inputs = case_of(name)
    if not train:
        return jax.jit(functools.partial(forward, compute))(params, *inputs), None

    def loss(params):
        output = forward(compute, params, *inputs)
        return squares(output), output

    gradient, output = jax.jit(jax.grad(loss, has_aux=True))(params)
    return output, gradient


def products(closed):
    """Of every convolution and matrix product of a program, the dtypes of its operands."""
    for equation in closed.jaxpr.eqns:
        if (
            equation.primitive.name in ("conv_general_dilated", "dot_general")
            or equation.primitive in CONVOLUTIONS
        ):
            yield tuple(variable.aval.dtype.name for variable in equation.invars)
        for value in equation.params.values():
            if hasattr(value, "eqns"):
                value = jax.extend.core.ClosedJaxpr(value, ())
            if hasattr(value, "jaxpr"):
                yield from products(value)


DIFFERENTIATED = ("unet", "ldm_text", "dit_text", "ncsnpp_cld", "mlp", "mbconv", "flows")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in (*CASES, *NVAES)],
)
def test_bfloat16_stays_within_its_rounding(name):
    """A rounding errs by 2^-9 at most, some hundred of them in a row by 2%. What comes out is float32 again."""
    (exact, slope), (rounded, rounded_slope) = (
        ran(name, c, name in DIFFERENTIATED) for c in (PLAIN, BFLOAT16)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded, rounded_slope))} == {jnp.dtype("float32")}
    assert 5e-4 < relative(rounded, exact) < 0.03
    assert slope is None or 5e-4 < relative(trainable(rounded_slope), trainable(slope)) < 0.06


@pytest.mark.parametrize("name", [*CASES, *NVAES])
def test_products_are_of_bfloat16_but_for_time_and_flows(name):
    forward, params, inputs = case_of(name)
    run = functools.partial(forward, BFLOAT16)
    found = list(products(jax.make_jaxpr(run)(params, *inputs)))
    # A flow is two cells of three convolutions for each of the two groups.
    in_float32 = CASES[name].in_float32 if name in CASES else 12 * NVAES[name].flows
    assert found.count(("float32", "float32")) == in_float32
    assert found.count(("bfloat16", "bfloat16")) == len(found) - in_float32 >= 3
    gradient = jax.make_jaxpr(jax.grad(lambda p: squares(run(p, *inputs))))(params)
    assert {left == right for left, right in products(gradient)} == {True}


LDM = str(tiny.ROOT / "configs" / "ldm_digits.py:quick")
LDM_CASES = {
    "labels": (),
    "inpainting": ("--config.conditioning.name=inpainting",),
    "text": ("--config.conditioning.name=text", "--config.conditioning.pieces=20"),
}


@pytest.mark.parametrize("name", LDM_CASES)
def test_the_frozen_and_the_conditioning_network_train_in_bfloat16_too(name):
    """But for the time embedding, all products of an LDM's training step are; none is when it encodes or samples."""
    planned = experiment(load_config(LDM, [*LDM_CASES[name], "--config.compute.dtype=bfloat16"]))
    model, key = planned.model, jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    condition = None if model.task else planned.conditioning.null(2)
    batch = Batch(jnp.zeros((2, *model.data_shape)), condition)
    trained = flops_by_dtype(jax.make_jaxpr(model.loss)(params, batch, key).jaxpr)
    assert set(trained) == {"bfloat16", "float32"}
    assert trained["float32"] < 0.02 * trained["bfloat16"]
    for function in (model.encode_data, model.latent_bound):
        assert set(flops_by_dtype(jax.make_jaxpr(function)(params, batch, key).jaxpr)) == {"float32"}
    context = lambda params: model.prior.sampling_net(
        params, condition, jnp.zeros((2, *model.latent_shape)), 1.0
    )
    assert "bfloat16" not in flops_by_dtype(jax.make_jaxpr(context)(params).jaxpr)


def test_texts_in_bfloat16_stay_within_its_rounding():
    """Their layers may be computed once more for the gradient, which is then the same."""
    texts = Texts(pieces=20, length=6, width=32, layers=2, heads=2, head_width=16)
    params = drawn(jax.eval_shape(texts.init, jax.random.key(0)))
    pieces = jnp.asarray([[2, 5, 7, 3, 0, 0], [2, 19, 3, 0, 0, 0]])

    def run(compute):
        forward = lambda params: jnp.mean(texts.context(params, pieces, compute).tokens ** 2)
        return texts.context(params, pieces, compute).tokens, jax.grad(forward)(params)

    (exact, slope), (rounded, rounded_slope), (_, again) = map(run, (PLAIN, BFLOAT16, Compute(remat=True)))
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded, rounded_slope))} == {jnp.dtype("float32")}
    assert 5e-4 < relative(rounded, exact) < 0.03
    assert 5e-4 < relative(rounded_slope, slope) < 0.06
    assert relative(again, slope) < 1e-6


@pytest.mark.parametrize("name", NVAES)
def test_nvae_keeps_posteriors_latents_and_statistics_in_float32(name):
    """Also where the boundary does not cast them back."""
    _, params, (x, noises) = nvae_case(name)
    variables = {"params": params["net"], **params["state"]}
    apply = functools.partial(NVAES[name].apply, train=True, mutable=["batch_stats", "kernels"])

    def types(variables, x, noises):
        output, moved = apply(variables, x.astype(jnp.bfloat16), noises)
        return output.features, jax.tree.leaves((output.groups, moved))

    features, others = jax.eval_shape(types, variables, x, noises)
    assert features.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in others} == {jnp.dtype("float32")}


@pytest.mark.parametrize("name", NVAES)
def test_sampling_and_scoring_are_in_float32(name):
    """To the bit: the parameters are the same."""
    _, params, (x, noises) = nvae_case(name)
    nets = [StatefulNetwork(NVAES[name], c) for c in (PLAIN, Compute(dtype="bfloat16", remat=True))]
    evaluated, fast = (
        jax.make_jaxpr(functools.partial(n.apply, train=False))(params, x, noises) for n in nets
    )
    assert str(evaluated) == str(fast)
    assert {left for left, _ in products(fast)} == {"float32"}


@pytest.mark.parametrize("name", ["ncsnpp", "ncsnpp_cld", "mlp"])
def test_times_that_bfloat16_cannot_tell_apart_give_different_predictions(name):
    forward, params, (z_t, _) = scores_case(name)
    t = jnp.array([0.5, 0.5001, 0.5])
    assert len(set(t.astype(jnp.bfloat16).tolist())) == 1
    z_t = jnp.broadcast_to(z_t[:1], z_t.shape)
    eps = jax.jit(forward, static_argnums=0)(BFLOAT16, params, z_t, t)
    np.testing.assert_array_equal(eps[0], eps[2])
    assert np.any(eps[0] != eps[1])


def test_by_default_nothing_is_cast(x64):
    module, key = MLP(2, (8,)), jax.random.key(0)
    z_t, t = jax.random.normal(key, (3, 4)), jnp.array([0.1, 0.5, 0.9])
    assert z_t.dtype == jnp.float64
    net = Network(module)
    assert net.apply(net.init(key, z_t, t), z_t, t, dropout_key=key).dtype == jnp.float64


def test_attention_is_that_of_flax(precision):
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 9, 1, 6), precision)
    expected = nn.dot_product_attention(query, key, value)
    np.testing.assert_array_equal(attend(query, key, value), expected)


@pytest.mark.parametrize(
    "name",
    ["unet", "dit_text", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ldm_text", "flows"))],
)
def test_rematerialisation_changes_no_number(name):
    kept, again = (jax.tree.leaves(ran(name, compute)) for compute in (PLAIN, Compute(remat=True)))
    for left, right in zip(again, kept, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-6)


def bytes_kept(loss, params):
    """What the forward pass leaves for the gradient, beside what is given."""
    stored = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stored))


@pytest.mark.parametrize("name", ["unet", "bnswish"])
def test_rematerialisation_keeps_less(name):
    forward, params, inputs = case_of(name)
    given = sum(leaf.nbytes for leaf in jax.tree.leaves((params, inputs)))

    def kept(compute):
        return bytes_kept(lambda p: squares(forward(compute, p, *inputs)), params) - given

    plain, remat, both = map(kept, (PLAIN, Compute(remat=True), Compute(dtype="bfloat16", remat=True)))
    assert both < remat < 0.2 * plain


def test_a_model_in_bfloat16_has_the_loss_of_float32():
    """Its metrics, its gradients and what it carries on are float32 as well."""
    model, fast = tiny.model(), tiny.model("--config.compute.dtype=bfloat16", "--config.compute.remat=True")
    params = drawn(jax.eval_shape(model.init, jax.random.key(0)))
    params["mixing_logit"] = jnp.zeros_like(params["mixing_logit"])
    losses = [jax.jit(m.loss)(params, tiny.batch(64), jax.random.key(1)) for m in (model, fast)]
    (exact, aux), (rounded, rounded_aux) = losses
    assert exact != rounded
    np.testing.assert_allclose(rounded, exact, rtol=0.005)
    for name, value in aux.metrics.items():
        np.testing.assert_allclose(rounded_aux.metrics[name], value, rtol=0.01)
    assert {leaf.dtype for leaf in jax.tree.leaves((rounded, rounded_aux))} == {jnp.dtype("float32")}


def test_training_in_bfloat16_learns():
    model = tiny.model("--config.compute.dtype=bfloat16", "--config.compute.remat=True")
    params, batch, optimiser = jax.jit(model.init)(jax.random.key(0)), tiny.batch(64), optax.adam(3e-3)
    moments = optimiser.init(params)

    @jax.jit
    def step(params, moments):
        (value, _), slope = jax.value_and_grad(model.loss, has_aux=True)(params, batch, jax.random.key(1))
        updates, moments = optimiser.update(slope, moments)
        return optax.apply_updates(params, updates), moments, value

    losses = []
    for _ in range(20):
        params, moments, value = step(params, moments)
        losses.append(float(value))
    assert losses[-1] < 0.8 * losses[0]
    assert {leaf.dtype for leaf in jax.tree.leaves((params, moments)) if leaf.ndim} == {jnp.dtype("float32")}


def test_the_config_says_how_to_compute():
    config = load_config(tiny.CONFIG, ["--config.compute.dtype=bfloat16", "--config.compute.remat=True"])
    model = experiment(config).model
    chosen = Compute(dtype="bfloat16", remat=True)
    assert model.prior.net.compute == model.vae.backbone.encoder.compute == chosen
    assert model.vae.backbone.decoder.compute == chosen
    nvae = load_config(
        str(tiny.ROOT / "configs" / "lsgm_mnist.py") + ":small", ["--config.compute.remat=True"]
    )
    assert experiment(nvae).model.vae.backbone.compute == Compute(remat=True)


def test_a_dtype_that_does_not_exist():
    config = load_config(tiny.CONFIG, ["--config.compute.dtype=float16"])
    with pytest.raises(ConfigError, match=r"config.compute: dtype='float16' is none of float32, bfloat16"):
        experiment(config)


def test_runs_from_before_the_section_existed_go_on_in_any_precision():
    config = load_config(tiny.CONFIG, [])
    before = complete({name: part for name, part in config.to_dict().items() if name != "compute"})
    assert differences(before, config) == []
    changed = differences(before, load_config(tiny.CONFIG, ["--config.compute.dtype=bfloat16"]))
    assert changed == ["compute.dtype='float32', not 'bfloat16'"]
    assert changed[0].startswith(MAY_CHANGE)
