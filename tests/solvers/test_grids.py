"""Time grids: they start at 1, end at t_min, and have equal steps in their variable."""

import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.processes.linear import log_snr
from lsgm_jax.solvers.grids import EDM, Linear, LogSNR, Quadratic, Times, time_of_log_snr
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
