"""Published sizes of DiT, counted by hand; its block against NumPy; initialisation; positional embeddings."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.model_size import count_parameters, multiply_add_flops
from lsgm_jax.nn.dit import DiT, DiTBlock, from_patches, positions, to_patches
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.training.step import make_step
from tests import tiny
from tests.tiny import bare_stages

# Width, depth, heads; millions of parameters and billions of multiply-adds on a 32 x 32 x 4 latent, patches of 2 x 2.
PUBLISHED = {
    "S": (384, 12, 6, 33, 6.06),
    "B": (768, 12, 12, 130, 23.01),
    "L": (1024, 24, 16, 458, 80.71),
    "XL": (1152, 28, 16, 675, 118.64),
}
CLASSES = 1001  # rows of the label embedding of the paper; here labels are a context, outside the network


def parameters_by_hand(width, depth, patch=4, time=256, out=32):
    """Counts weights and biases; `patch` is pixels per patch, `out` outputs per patch, for noise and variance."""
    layer = lambda ins, outs: ins * outs + outs
    block = (
        layer(width, 6 * width) + 4 * layer(width, width) + layer(width, 4 * width) + layer(4 * width, width)
    )
    ends = layer(4 * patch, width) + layer(width, 2 * width) + layer(width, out)
    return layer(time, width) + layer(width, width) + depth * block + ends


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters_and_operations(name):
    """The reference is table 4 of the paper, whose networks predict a variance in addition to the noise."""
    width, depth, heads, millions, billions = PUBLISHED[name]
    module = DiT(out_channels=8, patch=2, width=width, depth=depth, heads=heads)
    inputs = jax.ShapeDtypeStruct((1, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = jax.eval_shape(functools.partial(module.init, deterministic=True), jax.random.key(0), *inputs)
    count = count_parameters(variables)
    assert count == parameters_by_hand(width, depth)
    assert round((count + CLASSES * width) / 1e6) == millions
    operations = multiply_add_flops(functools.partial(module.apply, deterministic=True), variables, *inputs)
    assert operations / 2e9 == pytest.approx(billions, rel=2e-3)


def test_the_largest_network_has_exactly_the_published_number_of_parameters():
    """The published checkpoint has 675,129,632 values: these, the label embedding and 256 fixed positions."""
    assert parameters_by_hand(1152, 28) == 673_681_568 == 675_129_632 - (CLASSES + 256) * 1152


SMALL = {"out_channels": 3, "width": 16, "depth": 2, "heads": 2}
BLOCK = DiTBlock(heads=2, mlp_ratio=3)
TOKENS, EMBEDDING, CONTEXT = (2, 6, 16), (2, 8), (2, 3, 5)


def normal(*shapes):
    """Draws standard Gaussian arrays in the precision of the test."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape)) for shape in shapes]


def drawn(module, *inputs):
    """Draws non-zero parameters."""
    shapes = jax.eval_shape(functools.partial(module.init, deterministic=True), jax.random.key(0), *inputs)
    rng = np.random.default_rng(1)
    draw = lambda leaf: jnp.asarray(
        rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype
    )
    return jax.tree.map(draw, shapes)


def applied(module, variables):
    return jax.jit(functools.partial(module.apply, variables, deterministic=True))


def in_numpy(params, tokens, embedding, context, heads):
    """Computes the block of the paper, with cross-attention to the context, for one sample."""
    dense = lambda x, p: x @ p["kernel"] + p.get("bias", 0.0)
    norm = lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    gelu = lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))

    def attend(query, key, value):
        found = []
        for q, k, v in zip(*(np.split(side, heads, axis=-1) for side in (query, key, value)), strict=True):
            weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
            found.append(weights / weights.sum(-1, keepdims=True) @ v)
        return np.concatenate(found, axis=-1)

    width = tokens.shape[-1]
    of_self = {  # Flax has a separate axis for heads
        name: {"kernel": p["kernel"].reshape(width, width), "bias": p["bias"].reshape(width)}
        for name, p in params["attend"].items()
    }
    adapted = np.split(dense(embedding / (1.0 + np.exp(-embedding)), params["adapt"]), 6)
    (shift, scale, gate), of_feed = adapted[:3], adapted[3:]
    x = norm(tokens) * (1.0 + scale) + shift
    tokens = tokens + gate * dense(
        attend(*(dense(x, of_self[name]) for name in ("query", "key", "value"))), of_self["out"]
    )
    look = params["attend_context"]
    sides = {"query": norm(tokens), "key": context, "value": context}
    tokens = tokens + dense(attend(*(dense(x, look[name]) for name, x in sides.items())), look["join"])
    shift, scale, gate = of_feed
    x = norm(tokens) * (1.0 + scale) + shift
    return tokens + gate * dense(gelu(dense(x, params["widen"])), params["narrow"])


def test_a_block_equals_that_of_the_paper(x64):
    inputs = normal(TOKENS, EMBEDDING, CONTEXT)
    variables = drawn(BLOCK, *inputs)
    params = jax.tree.map(np.asarray, variables["params"])
    expected = [
        in_numpy(params, *map(np.asarray, sample), BLOCK.heads) for sample in zip(*inputs, strict=True)
    ]
    np.testing.assert_allclose(applied(BLOCK, variables)(*inputs), expected, rtol=1e-10, atol=1e-12)


def test_a_fresh_block_is_the_identity():
    """Bit for bit, with a context too; only the adaptation and the output of the cross-attention start at zero."""
    inputs = [x.astype(jnp.float32) for x in normal(TOKENS, EMBEDDING, CONTEXT)]
    init = jax.jit(functools.partial(BLOCK.init_with_output, deterministic=True))
    output, variables = init(jax.random.key(0), *inputs)
    np.testing.assert_array_equal(output, inputs[0])
    empty = {
        jax.tree_util.keystr(path[1:-1], simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
        if path[-1].key == "kernel" and not np.any(leaf)
    }
    assert empty == {"adapt", "attend_context/join"}


def test_a_fresh_network_predicts_zero():
    """The mixed score therefore starts at its fixed part."""
    z_t, context = normal((2, 4, 6, 5), (2, 3, 7))
    module = DiT(**SMALL, cross_attention=True)
    init = jax.jit(functools.partial(module.init_with_output, deterministic=True))
    eps, _ = init(jax.random.key(0), z_t, jnp.array([0.1, 0.9]), context)
    np.testing.assert_array_equal(eps, np.zeros((2, 4, 6, 3)))


def test_a_block_is_equivariant_in_tokens_and_invariant_in_context_tokens(x64):
    """A permutation of the tokens permutes the output; one of the context tokens does not change it."""
    tokens, embedding, context = normal(TOKENS, EMBEDDING, CONTEXT)
    run = applied(BLOCK, drawn(BLOCK, tokens, embedding, context))
    before, order = run(tokens, embedding, context), np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_allclose(run(tokens[:, order], embedding, context), before[:, order], rtol=1e-10)
    np.testing.assert_allclose(run(tokens, embedding, context[:, ::-1]), before, rtol=1e-10)
    assert np.abs(run(tokens, embedding, 2.0 * context) - before).min() > 1e-6


def test_cross_attention_depends_on_more_than_the_mean_token(x64):
    """It distinguishes two contexts of equal mean; a network without cross-attention cannot."""
    z_t, mean, apart = normal((1, 4, 6, 5), (1, 1, 7), (1, 1, 7))
    contexts = [jnp.concatenate([mean + side, mean - side], axis=1) for side in (apart, 3.0 * apart)]
    differences = {}
    for cross_attention in (False, True):
        module, t = DiT(**SMALL, cross_attention=cross_attention), jnp.array([0.5])
        run = applied(module, drawn(module, z_t, t, contexts[0]))
        one, other, swapped = (run(z_t, t, context) for context in (*contexts, contexts[0][:, ::-1]))
        np.testing.assert_allclose(swapped, one, rtol=1e-9)
        differences[cross_attention] = np.abs(one - other)
    assert differences[False].max() < 1e-12
    assert differences[True].min() > 1e-6


def test_time_and_every_position_affect_only_their_sample(x64):
    """The latent is not square."""
    (z_t,), t = normal((2, 4, 6, 5)), jnp.array([0.2, 0.9])
    module = DiT(**SMALL)
    run = applied(module, drawn(module, z_t, t))
    before = run(z_t, t)
    assert before.shape == (2, 4, 6, 3)
    for after in (run(z_t.at[1, -1, -1, -1].add(1.0), t), run(z_t, t.at[1].set(0.5))):
        np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
        assert np.abs(after[1] - before[1]).min() > 1e-7


def test_positional_embeddings_distinguish_the_patches(x64):
    """A constant latent gives different outputs in all patches."""
    module, t = DiT(**SMALL), jnp.array([0.5])
    z_t = jnp.ones((1, 4, 6, 5))
    patches = to_patches(applied(module, drawn(module, z_t, t))(z_t, t), 2)[0]
    distances = np.abs(patches[:, None] - patches[None]).max(axis=-1)
    assert (distances + np.eye(6)).min() > 1e-4


def test_positional_embeddings_do_not_depend_on_the_latent_size_and_encode_offsets(x64):
    """The product of two of them depends only on the differences of rows and of columns."""
    large, small = (np.asarray(positions(*sides, 16)).reshape(*sides, 16) for sides in ((5, 7), (3, 4)))
    np.testing.assert_array_equal(large[:3, :4], small)
    product = lambda left, right: large[left] @ large[right]
    np.testing.assert_allclose(product((0, 0), (2, 3)), product((1, 3), (3, 6)), rtol=1e-12)
    of_all = np.einsum("abi,cdi->abcd", large, large).reshape(35, 35)
    np.testing.assert_allclose(of_all.diagonal(), 8.0, rtol=1e-12)
    assert (of_all - 8.0 * np.eye(35)).max() < 7.99


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_patches_are_squares_in_row_major_order_and_invertible(patch):
    (maps,) = normal((2, 2 * patch, 4 * patch, 3))
    tokens = to_patches(maps, patch)
    square = maps[1, patch : 2 * patch, 2 * patch : 3 * patch]
    np.testing.assert_array_equal(tokens[1, 4 + 2], square.ravel())
    np.testing.assert_array_equal(from_patches(tokens, patch, rows=2), maps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch": 0}, "patch=0: give a positive number"),
        ({"depth": -1}, "depth=-1: give a positive number"),
        ({"width": 18}, "width=18: use a multiple of 4"),
        ({"heads": 3}, "heads=3 does not divide width=16"),
        ({"dropout": 1.0}, "dropout=1.0: a probability below 1 is needed"),
    ],
)
def test_impossible_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DiT(**SMALL | change)


@pytest.mark.parametrize(
    ("settings", "side", "message"),
    [
        ({"patch": 3}, 8, r"a latent of shape \(6, 8, 5\): patch=3 does not divide its sides"),
        ({"cross_attention": True}, 6, "cross_attention=True needs a context"),
    ],
)
def test_inputs_that_do_not_fit_are_named(settings, side, message):
    with pytest.raises(ValueError, match=message):
        DiT(**SMALL, **settings).init(
            jax.random.key(0), jnp.zeros((1, 6, side, 5)), jnp.ones(1), deterministic=True
        )


CONFIG = str(tiny.ROOT / "configs" / "sgm_digits.py") + ":quick"
TINY = ("name=dit", "width=16", "depth=2", "heads=2")


LABELS = ("--config.conditioning.name=labels", "--config.conditioning.classes=10")


def config(*fields, others=()):
    return load_config(CONFIG, [*(f"--config.score.{field}" for field in (*TINY, *fields)), *others])


def test_dit_trains_as_the_score_network_of_a_config():
    """With the optimiser of the quick run, the gates open and the loss falls on images of constant grey."""
    cfg = config()
    cfg.compute.remat = True
    model = experiment(cfg).model
    stage = bare_stages(cfg)[-1]
    state = stage.first_state(jax.jit(model.init)(jax.random.key(0)), jax.random.key(2))
    step = jax.jit(make_step(stage.loss, stage.optimiser, stage.ema))
    grey = Batch(jnp.linspace(-1.0, 1.0, 64)[:, None, None, None] * jnp.ones((8, 8, 1)))
    loss, before = jax.jit(lambda p: model.loss(p, grey, jax.random.key(3))[0]), state.params
    for _ in range(60):
        state, _ = step(state, grey, jax.random.key(1))
    assert loss(state.params) < 0.96 * loss(before)
    assert np.any(state.params["score_net"]["block_0"]["adapt"]["kernel"])


def test_cross_attention_in_a_config_needs_tokens():
    """The token of a label is enough; without conditioning the config is refused."""
    params = jax.eval_shape(
        experiment(config("cross_attention=True", others=LABELS)).model.init, jax.random.key(0)
    )
    assert "attend_context" in params["score_net"]["block_1"]
    with pytest.raises(ConfigError, match=r"cross_attention=True needs tokens .*conditioning\.name='none'"):
        experiment(config("cross_attention=True"))


def test_a_config_whose_patches_do_not_fit_is_refused():
    with pytest.raises(
        ConfigError, match=r"config.score: a latent of shape \(8, 8, 1\): patch=3 does not divide"
    ):
        experiment(config("patch=3"))
