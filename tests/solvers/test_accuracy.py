"""With ten steps on its own grid, no solver is worse than DDIM with as many; the exact flow is known."""

import functools

import numpy as np
import pytest

from experiments.solver_accuracy import PROCESSES, errors, quantiles
from lsgm_jax.solvers.registry import METHODS

CHAIN, T_MIN = PROCESSES["DDPM chain"]
FAST = (
    "PLMS",
    "DEIS",
    "DPMSolverPP",
    "UniPC",
    "EDMHeun",
    "Ancestral",
    "PredictorCorrector",
    "Heun",
    "EulerMaruyama",
)
OTHERS = [
    name for name, make in METHODS.items() if make().refuse(CHAIN) is None and name not in (*FAST, "DDIM")
]
CASES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
WORSE = {"Ancestral": 1.6, "PredictorCorrector": 2.0}
NOISE = 0.01  # of the distance to the mixture for stochastic solvers, by their random share of each component


@functools.cache
def error(name, grid=None, steps=10, **options):
    method = METHODS[name](**options)
    return errors(CHAIN, T_MIN, method, grid or method.grid, steps)


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_are_no_worse_than_those_of_ddim(name):
    """On Gaussian data and on a mixture; two are worse, as their pages say, and no worse than these say."""
    noise = NOISE if METHODS[name]().stochastic else 0.0
    assert (error(name) < WORSE.get(name, 1.0) * error("DDIM") + noise).all()


@pytest.mark.parametrize("name", ["DPMSolverPP", "UniPC"])
def test_multistep_methods_are_accurate_on_the_linear_grid_too(name):
    """The published figures of the reference implementation for 20 such steps are 0.05 to 0.09."""
    assert (error(name, "linear", 20) < 0.06).all()
    assert (error(name, "linear", 20, lower_order_final=False) > 1.5 * error(name, "linear", 20)).all()


def test_the_quantiles_are_those_of_the_data():
    """Moments of N(1.5, 0.25), and of the mixture, at a time of almost no noise."""
    found = quantiles(CHAIN, T_MIN)
    np.testing.assert_allclose(found.mean(axis=1), [1.5, 0.0], atol=1e-3)
    np.testing.assert_allclose(found.var(axis=1), [0.25, 1.5 + 0.04], rtol=2e-3)
