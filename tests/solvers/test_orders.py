"""Every solver converges at its order to the exact mean and variance of Gaussian data."""

import pytest

from experiments.solver_orders import SETTING, cases, error, slope
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.solvers.grids import LogSNR
from lsgm_jax.solvers.registry import METHODS

# Each of these equals another case, which test_own_solvers.py tests.
KNOWN = ("DEIS order=1", "DPMSolverPP order=1", "PredictorCorrector ancestral, corrections=0")
CASES = [case for case in cases() if case.label not in KNOWN]


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_errors_fall_at_the_order_of_the_method(x64, case):
    """For the two larger numbers of steps; docs/solver_orders.md has all of them."""
    setting = case.setting._replace(counts=case.setting.counts[1:])
    assert abs(slope(case.build, setting) - case.build(setting.counts[0]).order) < 0.25


@pytest.mark.parametrize("schedule", [pytest.param("linear", marks=pytest.mark.slow), "cosine"])
@pytest.mark.parametrize("name", sorted({case.label.split()[0] for case in CASES}, key=list(METHODS).index))
def test_every_method_solves_discrete_time_processes(x64, name, schedule):
    """DDPM's chains in continuous time, also with last transitions that remove almost all signal (betas of 0.999)."""
    case = next(case for case in CASES if case.label.split()[0] == name)
    method, chain = case.build(40), discrete_vp(schedule=schedule)
    setting = SETTING._replace(process=chain, grid=LogSNR, t_min=1e-3)
    assert error(method, setting, 40) < (0.1 if method.order == 1 else 0.012)
