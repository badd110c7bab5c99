"""The training step is plain optax with an EMA; optimisers and schedules do what their fields say."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.nn.network import Aux
from lsgm_jax.training import optim, sharding
from lsgm_jax.training.devices import place
from lsgm_jax.training.state import Skips, create_state
from lsgm_jax.training.step import EMA, Context, make_step
from tests import tiny


def quadratic(params, batch, context):
    """A loss without noise, with a metric and a penalty whose weight grows from zero to one over two steps."""
    penalty = jnp.minimum(context.step / 2.0, 1.0) * jnp.sum(params["w"] ** 2)
    error = jnp.mean((batch @ params["w"] - 1.0) ** 2) + penalty
    return error, Aux({"error": error}, {})


def test_a_step_is_optax_with_an_ema(x64):
    params, batch = {"w": jnp.array([0.5, -1.0])}, jnp.array([[1.0, 2.0], [0.3, 0.1]])
    optimiser = optax.sgd(0.1)
    step = make_step(quadratic, optimiser, EMA(0.05))
    state = create_state(params, optimiser)
    expected, ema = params["w"], params["w"]
    for number in range(3):
        gradient = jax.grad(
            lambda w, number=number: quadratic({"w": w}, batch, Context(None, number, None, ()))[0]
        )(expected)
        expected = expected - 0.1 * gradient
        decay = min(0.05, (1 + number) / (10 + number))
        ema = decay * ema + (1 - decay) * expected
        state, metrics = step(state, batch, jax.random.key(0))
        np.testing.assert_allclose(metrics["gradient_norm"], jnp.linalg.norm(gradient), rtol=1e-12)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-12)
    np.testing.assert_allclose(state.ema["w"], ema, rtol=1e-7)  # the decay itself is float32
    assert int(state.step) == 3


def test_micro_batches_are_one_loop():
    """However many, they are compiled once."""
    optimiser = optax.sgd(0.1)
    state = create_state({"w": jnp.ones(2)}, optimiser)

    def equations(micro_batches):
        step = make_step(quadratic, optimiser, EMA(0.9), grad_accum_steps=micro_batches)
        return len(jax.jit(step).lower(state, jnp.ones((8, 2)), jax.random.key(0)).as_text().splitlines())

    assert equations(2) == equations(4)


def test_without_warmup_the_ema_has_its_decay_from_the_start(x64):
    """The published EMA: decay 0.9999 from the first step, and current values for the skipped parts."""
    params, optimiser = {"vae": jnp.array([1.0]), "prior": jnp.array([2.0])}, optax.sgd(0.1)

    def loss(params, batch, context):
        return params["vae"][0] ** 2 + params["prior"][0] ** 2, Aux({}, {})

    step = make_step(loss, optimiser, EMA(0.9999, warmup=False, skip=("vae",)))
    state, ema = create_state(params, optimiser), 2.0
    for _ in range(4):
        state, _ = step(state, None, jax.random.key(0))
        ema = 0.9999 * ema + 0.0001 * float(state.params["prior"][0])
        np.testing.assert_allclose(state.ema["prior"], [ema], rtol=1e-8)  # the decay itself is float32
        np.testing.assert_array_equal(state.ema["vae"], state.params["vae"])
    assert abs(ema - 2.0) < 1e-3 < abs(float(state.params["prior"][0]) - 2.0)


def test_an_ema_with_decay_zero_is_the_parameters():
    """With and without warm-up."""
    params, optimiser = {"w": jnp.array([0.3, -1.7])}, optax.sgd(0.1)
    for warmup in (True, False):
        step = make_step(lambda p, b, c: (jnp.sum(p["w"] ** 3), Aux({}, {})), optimiser, EMA(0.0, warmup))
        state = create_state(params, optimiser)
        for _ in range(2):
            state, _ = step(state, None, jax.random.key(0))
        np.testing.assert_array_equal(state.ema["w"], state.params["w"])


def test_a_loss_sees_the_ema_and_the_memory_of_the_last_step():
    def remembering(params, batch, context):
        seen = jnp.stack([context.ema_params["w"], context.memory, context.step.astype(jnp.float32)])
        return params["w"] ** 2, Aux(
            {"ema": seen[0], "memory": seen[1], "step": seen[2]}, {}, memory=params["w"]
        )

    step = make_step(remembering, optax.sgd(0.1), EMA(0.9, warmup=False))
    state = create_state({"w": jnp.ones(())}, optax.sgd(0.1), jnp.asarray(7.0))
    before = state
    for number, memory in enumerate((7.0, 1.0)):
        state, metrics = step(before, None, jax.random.key(0))
        found = [float(metrics[name]) for name in ("ema", "memory", "step")]
        np.testing.assert_allclose(found, [before.ema["w"], memory, number], rtol=1e-6)
        before = state


def test_every_step_draws_independent_noise():
    def noisy(params, batch, context):
        noise = jax.random.normal(context.key)
        return params["w"] * 0.0, Aux({"noise": noise}, {})

    step = make_step(noisy, optax.sgd(0.1), EMA(0.9))
    state = create_state({"w": jnp.zeros(())}, optax.sgd(0.1))
    state, first = step(state, None, jax.random.key(0))
    _, second = step(state, None, jax.random.key(0))
    assert first["noise"] != second["noise"]


def test_the_callers_parameters_survive_donation():
    params = {"w": jnp.ones(2)}
    optimiser = optax.sgd(0.1)
    launcher, state = sharding.whole(), create_state(params, optimiser)
    step = launcher.compile(make_step(quadratic, optimiser, EMA(0.9)), state)
    state = place(launcher.mesh, state)
    step(state, launcher.put([np.ones((8, 2), np.float32)]), place(launcher.mesh, jax.random.key(0)))
    np.testing.assert_array_equal(params["w"], jnp.ones(2))


def test_the_step_compiles_once():
    """A weakly typed parameter would cause a second compilation in the second step."""
    model = tiny.model()
    optimiser = optim.per_part({"vae": optax.adamw(1e-3)}, optax.adamw(1e-3))
    launcher, traced = sharding.whole(), []

    def loss(*args):
        traced.append(1)
        return tiny.at_full_kl(model.loss)(*args)

    params = jax.eval_shape(model.init, jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
    state = place(launcher.mesh, create_state(model.init(jax.random.key(0)), optimiser))
    step = launcher.compile(make_step(loss, optimiser, EMA(0.9)), state)
    key = place(launcher.mesh, jax.random.key(0))
    for _ in range(3):
        state, _ = step(state, launcher.put([tiny.batch()]), key)
    assert len(traced) == 1


def test_non_trainable_state_is_replaced_by_the_loss_alone():
    """Running statistics have no gradient, weight decay or EMA; the weights next to them are optimised."""

    def counting(params, batch, context):
        state = {"net": {"statistics": {"count": params["net"]["statistics"]["count"] + 1.0}}}
        return jnp.sum(params["net"]["w"] ** 2), Aux({}, state)

    params = {"net": {"w": jnp.ones((2, 2)), "statistics": {"count": jnp.zeros((2, 2))}}}
    optimiser = optim.AdamW(learning_rate=0.1, final=0.1, warmup=0, weight_decay=0.5)(10)
    step = make_step(counting, optimiser, EMA(0.9))
    state = create_state(params, optimiser)
    for _ in range(3):
        state, _ = step(state, None, jax.random.key(0))
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["net"]["statistics"]["count"], 3.0)
    assert (np.asarray(state.params["net"]["w"]) < 1.0).all()


def test_learning_rate_warms_up_and_decays():
    rate = optim.LearningRate(learning_rate=1e-2, final=1e-4, warmup=10).schedule(100)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(100)], [0.0, 5e-3, 1e-2, 1e-4], rtol=1e-5)


def test_a_rate_may_start_above_zero_and_stay_at_its_peak_or_end_before_the_stage(x64):
    """As in LDM: warm-up to a constant rate; cosine decay until `decay_steps`, then constant."""
    constant = optim.LearningRate(learning_rate=2.0, warmup=4, start=1.0).schedule(100)
    np.testing.assert_allclose([constant(n) for n in (0, 1, 4, 50, 300)], [1.0, 1.25, 2.0, 2.0, 2.0])
    early = optim.LearningRate(learning_rate=1.0, final=0.1, warmup=10, decay_steps=50).schedule(100)
    np.testing.assert_allclose([early(n) for n in (10, 30, 50, 99)], [1.0, 0.55, 0.1, 0.1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(start=-1.0), r"start=-1\.0: give a number that is not negative"),
        (dict(final=-1.0), r"final=-1\.0: give"),
        (dict(warmup=20, decay_steps=20), "decay_steps=20: give more than the warmup=20"),
        (dict(b1=1.0), r"b1=1\.0: give a decay rate in"),
    ],
)
def test_invalid_fields_of_optimisers_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        optim.Adam(**dict(learning_rate=1.0) | fields)


@pytest.mark.parametrize("optimiser", [optim.Adam, optim.Adamax, optim.AdamW])
def test_optimisers_share_the_fields_of_the_learning_rate(optimiser):
    """Fields, order and defaults are the schema of configs."""
    shared = inspect.signature(optim.LearningRate).parameters
    own = inspect.signature(optimiser).parameters
    assert [own[name] for name in shared] == list(shared.values())
    assert list(own)[: len(shared)] == list(shared)
    with pytest.raises(ValueError, match=r"learning_rate=-1\.0: give a number that is not negative"):
        optimiser(learning_rate=-1.0)


def test_adam_has_the_decay_rates_of_its_moments():
    """The second step written out, with bias correction."""
    optimiser = optim.Adam(b1=0.5, b2=0.9, clip=0.0, **RATE)(10)
    first, second = (jax.tree.map(lambda p, k=k: jnp.cos(k * p), LEAVES) for k in (1.0, 2.0))
    _, state = optimiser.update(first, optimiser.init(LEAVES), LEAVES)
    updates, _ = optimiser.update(second, state, LEAVES)
    mean = jax.tree.map(lambda a, b: (0.25 * a + 0.5 * b) / 0.75, first, second)
    square = jax.tree.map(lambda a, b: (0.09 * a**2 + 0.1 * b**2) / 0.19, first, second)
    expected = jax.tree.map(lambda m, s: -0.1 * m / (jnp.sqrt(s) + 1e-8), mean, square)
    jax.tree.map(lambda u, e: np.testing.assert_allclose(u, e, rtol=1e-4), updates, expected)


def test_vae_and_prior_have_separate_learning_rates():
    params = {
        "vae": {"w": jnp.ones((2, 2))},
        "score_net": {"w": jnp.ones((2, 2))},
        "mixing_logit": jnp.ones(3),
    }
    optimiser = optim.per_part({"vae": optax.sgd(0.1)}, optax.sgd(0.5))
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    np.testing.assert_allclose(updates["vae"]["w"], -0.1)
    np.testing.assert_allclose(updates["score_net"]["w"], -0.5)
    np.testing.assert_allclose(updates["mixing_logit"], -0.5)


def test_only_matrices_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimiser = optim.AdamW(learning_rate=0.1, final=0.1, warmup=0, weight_decay=0.5)(10)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    np.testing.assert_array_equal(updates["bias"], 0.0)


def first_update(optimiser, gradient, params):
    return optimiser.update(gradient, optimiser.init(params), params)[0]


LEAVES = {"kernel": jnp.array([[3.0, -40.0], [0.1, 2.0]]), "bias": jnp.array([5.0, -1.0])}
RATE = dict(learning_rate=0.1, final=0.1, warmup=0)


def test_published_runs_decay_biases_and_mixing_logits_too():
    zero = jax.tree.map(jnp.zeros_like, LEAVES)
    updates = first_update(optim.AdamW(weight_decay=0.5, decay_all=True, **RATE)(10), zero, LEAVES)
    jax.tree.map(lambda u, p: np.testing.assert_allclose(u, -0.1 * 0.5 * p, rtol=1e-6), updates, LEAVES)


def test_adamax_decays_in_the_gradient():
    """Unlike AdamW: it equals the optimiser of a loss with an L2 penalty, half the decay times the squares."""
    gradient = jax.tree.map(lambda p: 0.1 * jnp.cos(p), LEAVES)
    with_squares = jax.tree.map(lambda g, p: g + 0.01 * p, gradient, LEAVES)
    decayed = first_update(optim.Adamax(weight_decay=0.01, **RATE)(10), gradient, LEAVES)
    expected = first_update(optim.Adamax(**RATE)(10), with_squares, LEAVES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), decayed, expected)
    plain = first_update(optim.Adamax(**RATE)(10), gradient, LEAVES)
    assert not np.allclose(plain["bias"], expected["bias"], rtol=1e-2)


def test_a_gradient_is_clipped_to_its_norm_or_not_at_all():
    """Seen in the first moment of Adam, whose update does not depend on the scale of the gradient."""

    def moment(clip):
        optimiser = optim.AdamW(clip=clip, **RATE)(10)
        _, state = optimiser.update(LEAVES, optimiser.init(LEAVES), LEAVES)
        return optax.tree.get(state, "mu")

    norm = float(optax.tree.norm(LEAVES))
    assert norm > 2.0
    np.testing.assert_allclose(optax.tree.norm(moment(2.0)), 0.1 * 2.0, rtol=1e-5)
    for clip in (0.0, 2.0 * norm):
        np.testing.assert_allclose(optax.tree.norm(moment(clip)), 0.1 * norm, rtol=1e-5)
    with pytest.raises(ValueError, match="give the greatest norm of the gradient, or 0 for no limit"):
        optim.Adamax(clip=-1.0, **RATE)


@pytest.mark.parametrize("where", ["loss", "gradient", "neither"])
def test_a_non_finite_step_changes_nothing(where):
    """Except the counters, and the next step is taken. A finite loss with a non-finite gradient counts too."""

    def loss(params, batch, context):
        bad = {"loss": jnp.nan, "gradient": 0.0, "neither": 0.0}[where]
        # The derivative of the root at 0 is infinite.
        root = jnp.sqrt(jnp.where(batch > 0.0, params["w"] - params["w"], 1.0))
        value = params["w"] ** 2 + jnp.where(batch > 0.0, bad, 0.0) + (root if where == "gradient" else 0.0)
        return value, Aux({"nelbo": value}, {"state": batch}, memory=context.memory + 1.0)

    optimiser = optax.adam(0.1)
    step = jax.jit(make_step(loss, optimiser, EMA(0.9)))
    params = {"w": jnp.ones(()), "state": jnp.zeros(())}
    state = create_state(params, optimiser, memory=jnp.zeros(()))
    start, _ = step(state, jnp.zeros(()), jax.random.key(0))
    state, counts = start, []
    for _ in range(2):
        state, metrics = step(state, jnp.ones(()), jax.random.key(0))
        counts.append((int(metrics["skipped"]), int(metrics["skipped_in_a_row"])))
    if where == "neither":
        assert counts == [(0, 0), (0, 0)]
        assert state.params["w"] != start.params["w"]
        return
    assert counts == [(1, 1), (2, 2)]
    tiny.assert_trees_equal(state.replace(step=0, skips=Skips(0, 0)), start.replace(step=0))
    assert int(state.step) == 3
    assert np.isfinite(metrics["loss"]) == (where == "gradient")
    state, metrics = step(state, jnp.zeros(()), jax.random.key(0))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_a_row"])) == (2, 0)
    assert state.params["w"] != start.params["w"]
