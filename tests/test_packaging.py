"""What the package says about itself: it declares what it imports, pins what it declares, and has its licence."""

import importlib.metadata
import re
import sys
import tomllib

import pytest

from tests.test_architecture import FILES, imports
from tests.tiny import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def names(requirements):
    return {canonical(re.match(r"[\w.-]+", line)[0]) for line in requirements}


DECLARED = names(PROJECT["dependencies"])


def foreign():
    """The libraries that the package imports: names of modules, the first parts alone."""
    roots = {name.split(".")[0] for file in FILES for name in imports(file)}
    return sorted(roots - sys.stdlib_module_names - {"lsgm_jax"})


@pytest.mark.parametrize("module", foreign())
def test_what_is_imported_is_declared(module):
    """A library that another one brings along may be dropped by it."""
    found = importlib.metadata.packages_distributions()[module]
    assert {canonical(name) for name in found} & DECLARED, f"{module} is from {found}"


def pinned(file):
    """Canonical names to (version, marker, the lines of hashes)."""
    entries = re.findall(r"^([\w.-]+)==([^\s;]+)(.*(?:\n .*)*)", (ROOT / file).read_text(), re.MULTILINE)
    return {canonical(name): (version, *more.partition(" \\\n")[::2]) for name, version, more in entries}


def test_what_is_declared_is_pinned():
    assert pinned("requirements.txt").keys() >= DECLARED


def test_the_lock_has_the_pins_with_hashes_and_no_index():
    """And what other platforms need more, each under its condition."""
    pins, locked = pinned("requirements.txt"), pinned("requirements.lock")
    assert {name: locked[name][0] for name in pins} == {name: version for name, (version, *_) in pins.items()}
    assert all(marker.startswith(" ; ") for name, (_, marker, _) in locked.items() if name not in pins)
    assert all("--hash=sha256:" in hashes for _, _, hashes in locked.values())
    assert not re.search(r"https?://|file:", (ROOT / "requirements.lock").read_text())


def test_the_licence_is_said_once():
    """In the metadata of the package, by its SPDX identifier; the files go with it."""
    assert PROJECT["license"] == "Apache-2.0"
    for file in PROJECT["license-files"]:
        assert "Apache License" in (ROOT / file).read_text()
