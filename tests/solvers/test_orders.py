"""Every solver converges at the order that it claims, to the exact mean and variance of Normal data."""

import pytest

from experiments.solver_orders import cases, slope

# Each of these is another case's equal, which test_own_solvers.py holds it to.
KNOWN = ("DEIS order=1", "DPMSolverPP order=1", "PredictorCorrector ancestral, corrections=0")
CASES = [case for case in cases() if case.label not in KNOWN]


@pytest.mark.parametrize("case", CASES, ids=[case.label for case in CASES])
def test_errors_fall_at_the_order_of_the_method(x64, case):
    """The two larger numbers of steps are enough here; docs/solver_orders.md has them all."""
    setting = case.setting._replace(counts=case.setting.counts[1:])
    assert abs(slope(case.build, setting) - case.build(setting.counts[0]).order) < 0.25
