"""The step is plain optax, the same on one device and on eight, and its parts do what they are named for."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsgm_jax.models.network import Aux
from lsgm_jax.training import optim, parallel
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import Average, Context, make_step
from tests import tiny


def quadratic(params, batch, context):
    """A noise-free loss with a metric, and a penalty that grows from zero to one over two steps."""
    penalty = jnp.minimum(context.step / 2.0, 1.0) * jnp.sum(params["w"] ** 2)
    error = jnp.mean((batch @ params["w"] - 1.0) ** 2) + penalty
    return error, Aux({"error": error}, {})


def test_a_step_is_optax_with_an_average(x64):
    params, batch = {"w": jnp.array([0.5, -1.0])}, jnp.array([[1.0, 2.0], [0.3, 0.1]])
    optimiser = optax.sgd(0.1)
    step = make_step(quadratic, optimiser, Average(0.05))
    state = create_state(params, optimiser)
    expected, average = params["w"], params["w"]
    for number in range(3):
        gradient = jax.grad(
            lambda w, number=number: quadratic({"w": w}, batch, Context(None, number, None, ()))[0]
        )(expected)
        expected = expected - 0.1 * gradient
        decay = min(0.05, (1 + number) / (10 + number))
        average = decay * average + (1 - decay) * expected
        state, metrics = step(state, batch, jax.random.key(0))
        np.testing.assert_allclose(metrics["gradient_norm"], jnp.linalg.norm(gradient), rtol=1e-12)
    np.testing.assert_allclose(state.params["w"], expected, rtol=1e-12)
    np.testing.assert_allclose(state.ema["w"], average, rtol=1e-7)  # the decay itself is a float32 number
    assert int(state.step) == 3


def test_every_step_draws_its_own_noise():
    def noisy(params, batch, context):
        noise = jax.random.normal(context.key)
        return params["w"] * 0.0, Aux({"noise": noise}, {})

    step = make_step(noisy, optax.sgd(0.1), Average(0.9))
    state = create_state({"w": jnp.zeros(())}, optax.sgd(0.1))
    state, first = step(state, None, jax.random.key(0))
    _, second = step(state, None, jax.random.key(0))
    assert first["noise"] != second["noise"]


def test_the_callers_parameters_survive_donation():
    params = {"w": jnp.ones(2)}
    optimiser = optax.sgd(0.1)
    mesh = parallel.data_mesh()
    step = parallel.compile_step(make_step(quadratic, optimiser, Average(0.9)), mesh)
    state = jax.device_put(create_state(params, optimiser), parallel.replicated(mesh))
    key = jax.device_put(jax.random.key(0), parallel.replicated(mesh))
    step(state, parallel.put_batch(mesh, np.ones((8, 2), np.float32)), key)
    np.testing.assert_array_equal(params["w"], jnp.ones(2))


def test_the_step_compiles_once():
    """A weakly typed parameter would make the second step another program, and users wait twice."""
    model = tiny.model()
    optimiser = optim.per_part(vae=optax.adamw(1e-3), prior=optax.adamw(1e-3))
    mesh = parallel.data_mesh()
    traced = []

    def loss(*args):
        traced.append(1)
        return tiny.at_full_kl(model.loss)(*args)

    step = parallel.compile_step(make_step(loss, optimiser, Average(0.9)), mesh)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
    state = jax.device_put(create_state(model.init(jax.random.key(0)), optimiser), parallel.replicated(mesh))
    for _ in range(3):
        state, _ = step(state, parallel.put_batch(mesh, tiny.batch()), jax.random.key(0))
    assert len(traced) == 1


def test_what_a_loss_carries_replaces_its_place_and_nothing_else():
    """Running statistics: no gradient, no weight decay, no averaging; the weights beside them are optimised."""

    def counting(params, batch, context):
        carried = {"net": {"statistics": {"count": params["net"]["statistics"]["count"] + 1.0}}}
        return jnp.sum(params["net"]["w"] ** 2), Aux({}, carried)

    params = {"net": {"w": jnp.ones((2, 2)), "statistics": {"count": jnp.zeros((2, 2))}}}
    optimiser = optim.adamw(steps=10, learning_rate=0.1, final=0.1, warmup=0, weight_decay=0.5)
    step = make_step(counting, optimiser, Average(0.9))
    state = create_state(params, optimiser)
    for _ in range(3):
        state, _ = step(state, None, jax.random.key(0))
    for tree in (state.params, state.ema):
        np.testing.assert_array_equal(tree["net"]["statistics"]["count"], 3.0)
    assert (np.asarray(state.params["net"]["w"]) < 1.0).all()


def test_learning_rate_warms_up_and_decays():
    rate = optim.schedule(peak=1e-2, final=1e-4, warmup=10, steps=100)
    np.testing.assert_allclose([rate(0), rate(5), rate(10), rate(100)], [0.0, 5e-3, 1e-2, 1e-4], rtol=1e-5)


def test_vae_and_prior_have_learning_rates_of_their_own():
    params = {
        "vae": {"w": jnp.ones((2, 2))},
        "score_net": {"w": jnp.ones((2, 2))},
        "mixing_logit": jnp.ones(3),
    }
    optimiser = optim.per_part(vae=optax.sgd(0.1), prior=optax.sgd(0.5))
    updates, _ = optimiser.update(jax.tree.map(jnp.ones_like, params), optimiser.init(params), params)
    np.testing.assert_allclose(updates["vae"]["w"], -0.1)
    np.testing.assert_allclose(updates["score_net"]["w"], -0.5)
    np.testing.assert_allclose(updates["mixing_logit"], -0.5)


def test_only_matrices_decay():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimiser = optim.adamw(steps=10, learning_rate=0.1, final=0.1, warmup=0, weight_decay=0.5)
    updates, _ = optimiser.update(jax.tree.map(jnp.zeros_like, params), optimiser.init(params), params)
    assert np.all(np.asarray(updates["kernel"]) < 0)
    np.testing.assert_array_equal(updates["bias"], 0.0)
