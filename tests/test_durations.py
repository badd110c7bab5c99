"""The list of slow tests: how it is made, and that its tests exist."""

import pathlib
import re
import xml.etree.ElementTree

from tests.durations import slow_tests

ROOT = pathlib.Path(__file__).parent.parent


def test_functions_are_judged_by_their_mean_and_parity_by_its_cases():
    cases = [
        ("tests.a", "test_slow[1]", 5.0),
        ("tests.a", "test_slow[2]", 0.1),
        ("tests.a", "test_quick[1]", 3.0),
        ("tests.a", "test_quick[2]", 0.1),
        ("tests.test_oracles", "test_parity[x]", 7.0),
        ("tests.test_oracles", "test_parity[y]", 5.0),
        ("tests.cli.test_main", "test_everything", 50.0),
    ]
    report = xml.etree.ElementTree.Element("testsuite")
    for module, name, seconds in cases:
        xml.etree.ElementTree.SubElement(report, "testcase", classname=module, name=name, time=str(seconds))
    assert slow_tests(report) == ["tests/a.py::test_slow", "tests/test_oracles.py::test_parity[x]"]


def test_every_slow_test_exists():
    for name in (ROOT / "tests" / "slow.txt").read_text().splitlines():
        module, function = name.split("[")[0].split("::")
        assert re.search(rf"^def {function}\(", (ROOT / module).read_text(), re.MULTILINE), name
