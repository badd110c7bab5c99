"""Time grids: they start at 1, end at t_min, and have equal steps in their variable."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.processes.linear import log_snr
from lsgm_jax.solvers.grids import EDM, Default, Linear, LogSNR, Quadratic, Times, time_of_log_snr
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from tests.process_examples import MAIN

GRIDS = {
    "linear": (Linear(steps=7), lambda process, t: t),
    "quadratic": (Quadratic(steps=7), lambda process, t: jnp.sqrt(t - 1e-3)),
    "log_snr": (LogSNR(steps=7), log_snr),
    "edm": (EDM(steps=7), lambda process, t: jnp.exp(-log_snr(process, t) / 14.0)),
}


@pytest.mark.parametrize("process", MAIN)
@pytest.mark.parametrize("name", GRIDS)
def test_steps_are_equal_in_the_variable_of_the_grid(precision, name, process):
    grid, clock = GRIDS[name]
    times = grid.times(MAIN[process], 1e-3)
    assert len(times) == grid.steps + 1
    assert times[0] == 1.0
    np.testing.assert_allclose(times[-1], 1e-3, rtol=1e-6)
    assert jnp.all(jnp.diff(times) < 0.0)
    lengths = jnp.diff(clock(MAIN[process], times))
    np.testing.assert_allclose(lengths, lengths.mean(), rtol=2e-3 if precision == "float32" else 1e-8)


@pytest.mark.parametrize("process", MAIN)
def test_time_of_log_snr_is_the_inverse_of_log_snr(x64, process):
    t = jnp.array([1e-5, 1e-3, 0.2, 0.9])
    np.testing.assert_allclose(time_of_log_snr(MAIN[process], log_snr(MAIN[process], t)), t, rtol=1e-9)


def test_given_times_are_unchanged():
    values = (0.9, 0.5, 0.1)
    np.testing.assert_allclose(Times(values=values).times(MAIN["vp"], 1e-3), values)
    assert Times(values=values).steps == 2


def test_a_number_of_steps_takes_the_grid_of_the_solver():
    for name, grid in {"DDIM": Linear, "UniPC": Quadratic, "DEIS": Quadratic, "EDMHeun": Linear}.items():
        assert Sampler(method=METHODS[name](), steps=Default(steps=7)).steps == grid(steps=7)


@pytest.mark.parametrize(
    ("method", "steps", "process", "message"),
    [
        (
            METHODS["UniPC"](order=3, lower_order_final=False),
            Linear(steps=20),
            "vp",
            "'linear'.*set it to True",
        ),
        (METHODS["DPMSolverPP"](lower_order_final=False), Linear(steps=10), "vp", "'linear'.*set it to True"),
        (METHODS["DPMSolverPP"](order=3), EDM(steps=10), "vp", "'edm' .*use quadratic"),
        (METHODS["EDMHeun"](), Quadratic(steps=5), "vp", "'quadratic' .*use linear or edm"),
        (METHODS["Heun"](), Quadratic(steps=10), "ve", "Heun on VE .*use DDIM"),
        (METHODS["UniPC"](), Linear(steps=20), "vp", None),
        (METHODS["UniPC"](order=3, lower_order_final=False), LogSNR(steps=20), "vp", None),
        (METHODS["EDMHeun"](), Quadratic(steps=100), "vp", None),
        (METHODS["Heun"](), Adaptive(), "ve", None),
        (METHODS["DDIM"](), Times(values=(1.0, 0.5, 0.1)), "ve", None),
    ],
)
def test_a_grid_that_ruins_the_solver_is_said(method, steps, process, message):
    caution = Sampler(method=method, steps=steps).caution(MAIN[process])
    assert caution is None if message is None else re.search(message, caution)
