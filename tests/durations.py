"""Adds the slow tests of a measured run to `slow.txt`: `python -m tests.durations REPORT.xml`.

The report is that of `pytest --junitxml=REPORT.xml`, without a cache of compiled programs (`--cache-clear`). A test
function is slow if its cases take more than `SECONDS` on average. A case of the parity with the originals is judged by
itself, and the tests of the command and of the README are what everyone should run.
"""

import collections
import pathlib
import statistics
import sys
import xml.etree.ElementTree

SECONDS, SECONDS_OF_PARITY = 2.0, 6.0
PARITY = "tests/test_oracles.py"
FOR_EVERYONE = ("tests/test_readme.py", "tests/cli/test_main.py")


def slow_tests(report):
    """Names of test functions, and of single cases of the parity."""
    functions, found = collections.defaultdict(list), []
    for case in report.iter("testcase"):
        module = case.get("classname").replace(".", "/") + ".py"
        name, seconds = f"{module}::{case.get('name')}", float(case.get("time"))
        if module == PARITY:
            found += [name] * (seconds > SECONDS_OF_PARITY)
        elif module not in FOR_EVERYONE:
            functions[name.split("[")[0]].append(seconds)
    return sorted(found + [name for name, cases in functions.items() if statistics.mean(cases) > SECONDS])


if __name__ == "__main__":
    listed = pathlib.Path(__file__).with_name("slow.txt")
    root = xml.etree.ElementTree.fromstring(pathlib.Path(sys.argv[1]).read_text())
    listed.write_text("\n".join(sorted({*listed.read_text().split(), *slow_tests(root)})) + "\n")
