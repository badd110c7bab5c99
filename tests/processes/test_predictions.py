"""Noise, data and v are equivalent parameterisations: conversions, losses and minimisers agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.exact_gaussian import MEAN, VARIANCE, exact_eps, moments
from lsgm_jax.arrays import as_state, coordinates, expand, sum_per_sample
from lsgm_jax.config.registry import WEIGHTINGS
from lsgm_jax.objectives.score_matching import l1, l2, prediction_error, score_matching
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.processes.predictions import PREDICTIONS
from tests.process_examples import MAIN

PROCESSES = {**MAIN, "chain": discrete_vp(steps=100, first=0.01, last=0.2)}
PAIRS = [(name, kind) for name in PROCESSES for kind in PREDICTIONS if (name, kind) != ("cld", "v")]
OWN_WEIGHTING = {"eps": "unweighted", "x_0": "x_0", "v": "v", "velocity": "velocity"}


def target(process, kind, z_0, eps, t, z_t):
    """The target of the network, given data, noise of the last coordinate, and the state."""
    if kind == "velocity":
        return coordinates(linear.probability_flow(process, z_t, eps, t))[-1]
    if kind == "v":
        signal, noise = linear.kernel(process, t)
        return expand(signal[:, 0], z_0) * eps - expand(noise[:, 0, 0], z_0) * z_0
    return {"eps": eps, "x_0": z_0}[kind]


def affine_predictor(process, kind, t):
    """Slopes and intercept of E[target | z_t] for N(MEAN, VARIANCE) and one time, by regression on the state."""
    mean, cov = moments(process, t)
    signal, noise = linear.kernel(process, t)
    of_data = VARIANCE * jnp.linalg.solve(cov, signal)
    of_noise = jnp.linalg.solve(cov, noise[:, -1])
    alpha, sigma = signal[0], noise[0, 0]
    drift, rate = process.drift(t)[-1], 0.5 * process.diffusion(t) ** 2 / noise[-1, -1]
    slopes = {
        "eps": of_noise,
        "x_0": of_data,
        "v": alpha * of_noise - sigma * of_data,
        "velocity": drift + rate * of_noise,
    }[kind]
    centre = {"eps": 0.0, "x_0": MEAN, "v": -sigma * MEAN, "velocity": drift @ mean}[kind]
    return slopes, centre - slopes @ mean


def apply(affine, z_t):
    slopes, intercept = affine
    return sum(slopes[i] * z for i, z in enumerate(coordinates(z_t))) + intercept


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_exact_predictors_of_any_kind_give_the_exact_noise(x64, name, kind):
    process = PROCESSES[name]
    z_t = as_state(
        [jnp.linspace(-2.0, 3.0, 8)[:, None] * (1 + i) for i in range(len(process.prior_variance()))]
    )
    for time in (1e-3, 0.2, 1.0):
        t = jnp.full(8, time)
        output = apply(affine_predictor(process, kind, jnp.asarray(time)), z_t)
        eps_hat = PREDICTIONS[kind](process, z_t, t, output)
        np.testing.assert_allclose(eps_hat, exact_eps(process)(z_t, t), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_the_prediction_of_data_is_the_inverse_of_the_expected_data(x64, name):
    process, t = PROCESSES[name], jnp.linspace(0.01, 1.0, 20)
    draws = jax.random.normal(jax.random.key(0), (3, 20, 2))
    z_t = linear.perturb(process, draws[0], t, linear.unit_noise(process, jax.random.key(1), (20, 2)))
    data = linear.expected_data(process, z_t, draws[1], t)
    np.testing.assert_allclose(PREDICTIONS["x_0"](process, z_t, t, data), draws[1], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_conversions_are_accurate_in_float32(name, kind):
    """From t = 1e-3 on, up to rounding of what the noise is a difference of, in units of the noise.

    That is the data, which are large for small t, or the velocity of the flow without noise.
    """
    process, t = PROCESSES[name], np.geomspace(1e-3, 1.0, 41).astype(np.float32)
    with jax.enable_x64(True):
        long = jnp.asarray(t, jnp.float64)
        z_0, eps = (jax.random.normal(jax.random.key(seed), (41, 3)) for seed in (0, 1))
        noise = as_state([eps + i for i in range(len(process.prior_variance()))])
        z_t = linear.perturb(process, z_0, long, noise)
        output = target(process, kind, z_0, coordinates(noise)[-1], long, z_t)
        data_in_noise_units = np.abs(linear.whitened_signal(process, long)[:, -1])[:, None] * np.abs(z_0)
        still = target(process, "velocity", z_0, jnp.zeros_like(z_0), long, z_t)
        still_in_noise_units = np.abs(still) / np.asarray(linear.flow_rate(process, long))[:, None]
    single = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (z_t, output))
    eps_hat = PREDICTIONS[kind](process, single[0], jnp.asarray(t), single[1])
    assert eps_hat.dtype == jnp.float32
    size = {"x_0": data_in_noise_units, "velocity": still_in_noise_units}.get(kind, 0.0)
    assert (np.abs(np.asarray(eps_hat) - np.asarray(coordinates(noise)[-1])) <= 2e-6 * (3.0 + size)).all()


@pytest.mark.parametrize("norm", [l1, l2])
@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_a_weighting_gives_the_error_of_the_parameterisation_in_its_name(x64, name, kind, norm):
    """Value and gradient of the loss on the noise equal those of the plain norm of target - output."""
    process, t = PROCESSES[name], jnp.linspace(0.02, 1.0, 10)
    z_0, output = (jax.random.normal(jax.random.key(seed), (10, 3)) for seed in (0, 1))
    eps = linear.unit_noise(process, jax.random.key(2), (10, 3))
    z_t = linear.perturb(process, z_0, t, eps)
    wanted = target(process, kind, z_0, coordinates(eps)[-1], t, z_t)

    def of_noise(output):
        net = lambda z_t, t: PREDICTIONS[kind](process, z_t, t, output)
        weight = WEIGHTINGS[OWN_WEIGHTING[kind]](process, t)
        return norm(prediction_error(net, z_t, t, eps), weight).sum()

    def plain(output):
        difference = wanted - output
        return sum_per_sample(difference**2 if norm is l2 else jnp.abs(difference)).sum()

    for ours, exact in zip(
        jax.value_and_grad(of_noise)(output), jax.value_and_grad(plain)(output), strict=True
    ):
        np.testing.assert_allclose(ours, exact, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("name", "kind"), PAIRS)
def test_every_kind_has_its_exact_predictor_as_optimum(x64, name, kind):
    """The loss of an affine network is quadratic: its gradient vanishes there, for any weighting.

    Quadrature over data and noise is exact for polynomials of this degree.
    """
    process, time = PROCESSES[name], jnp.asarray(0.3)
    nodes, shares = np.polynomial.hermite_e.hermegauss(3)
    size = 1 + len(process.prior_variance())
    points = np.stack(np.meshgrid(*[nodes] * size, indexing="ij"), axis=-1).reshape(-1, size)
    share = np.prod(np.stack(np.meshgrid(*[shares / shares.sum()] * size, indexing="ij")), axis=0).ravel()
    z_0, t = MEAN + VARIANCE**0.5 * points[:, :1], jnp.full(len(points), time)
    eps = as_state([jnp.asarray(points[:, i : i + 1]) for i in range(1, size)])

    def loss(affine, weighting):
        net = lambda z_t, t: PREDICTIONS[kind](process, z_t, t, apply(affine, z_t))
        return (share * score_matching(WEIGHTINGS[weighting], process, net, jnp.asarray(z_0), t, eps)).sum()

    best = affine_predictor(process, kind, time)
    for weighting in ("unweighted", "likelihood", OWN_WEIGHTING[kind]):
        slope = jax.grad(loss)(best, weighting)
        off = jax.grad(loss)((best[0] + 0.1, best[1]), weighting)
        scale = float(jnp.abs(off[0]).max())
        assert scale > 0.0
        jax.tree.map(
            lambda leaf, scale=scale: np.testing.assert_allclose(leaf, 0.0, atol=1e-9 * scale), slope
        )


def test_v_is_for_processes_of_one_coordinate():
    z_t = as_state([jnp.ones((2, 1))] * 2)
    with pytest.raises(
        ValueError, match="v is for processes of one coordinate, not for CLD: take that of eps"
    ):
        PREDICTIONS["v"](CLD(), z_t, jnp.ones(2), z_t.x)
