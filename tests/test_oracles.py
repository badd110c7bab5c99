"""Parity with numbers that the original code computed: `pytest tests/test_oracles.py -k cld_loss`, say.

A fixture is a pair NAME.json (hyper-parameters) and NAME.npz (inputs, parameters, outputs). Everything is built from
the json, so LSGM_ORACLES=DIR runs the same tests on another folder of fixtures with other numbers. Where the
original has a quirk, the test says which and computes what the quirk makes of our value. The checks of each kind of
fixture are in `tests/parity/`.
"""

import pytest

from tests.parity import cld, cld_samplers, ldm_samplers, likelihoods, nvae, processes, regularisers, scores
from tests.parity.fixture import FOLDER, load, with_slack

MODULES = (processes, cld, cld_samplers, ldm_samplers, likelihoods, nvae, regularisers, scores)
CHECKS = {kind: check for module in MODULES for kind, check in module.CHECKS.items()}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_parity(name, precision):
    fixture = load(name)
    kind = fixture.spec.get("kind") or fixture.spec["fixture"]  # the folder is shared by two generations
    assert kind in CHECKS, f"{name}: fixtures of kind {kind!r} are not handled yet"
    if precision == "float32":
        fixture = with_slack(fixture, CHECKS[kind])
    CHECKS[kind](fixture)
    assert set(fixture.checked) == fixture.outputs()
