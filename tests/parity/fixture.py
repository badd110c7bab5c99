"""A fixture: numbers that the original code computed, with the hyper-parameters it computed them from."""

import dataclasses
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

FOLDER = pathlib.Path(os.environ.get("LSGM_ORACLES", pathlib.Path(__file__).parent.parent / "oracles"))


@dataclasses.dataclass(frozen=True)
class Fixture:
    """Hyper-parameters and arrays; `check` compares one output and remembers what it was given.

    A fixture's inputs have more digits than float32. In float32, `slack` says by how much rounding the inputs alone
    moves each output, which no formula can help.
    """

    spec: dict
    arrays: dict
    slack: dict | None = None
    checked: dict = dataclasses.field(default_factory=dict)

    def input(self, name):
        value = np.asarray(self.arrays[name], np.float32 if self.slack is not None else np.float64)
        return jnp.asarray(value, jnp.zeros(()).dtype)

    def check(self, name, value, *, rtol=1e-10, atol=0.0, single_atol=None):
        """Compares `out/name`: in float32 to 1e-5 of the value, beside what the inputs' rounding does to it."""
        if not self.has(name):
            return
        self.checked[name] = value = np.asarray(value, np.float64)
        if self.slack == {}:  # inputs are being rounded to see what that does
            return
        expected = self.arrays[f"out/{name}"]
        if self.slack is not None:
            rtol, atol = 1e-5, atol if single_atol is None else single_atol
            value = np.where(np.abs(value - expected) <= 1.1 * self.slack[name], expected, value)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=name)

    def check_scaled(self, name, value, *, rtol=1e-9, single_rtol=2e-5):
        """Compares `out/name` to a share of its largest entry: what a deep network computes has no smaller scale."""
        if not self.has(name):
            return
        expected = np.asarray(self.arrays[f"out/{name}"])
        # Some large outputs are stored rounded to float32.
        rtol = max(rtol, 1e-7) if expected.dtype == np.float32 else rtol
        largest = float(np.max(np.abs(expected)))
        self.checked[name] = value = np.asarray(value, np.float64)
        if self.slack != {}:
            atol = largest * (rtol if self.slack is None else single_rtol)
            np.testing.assert_allclose(value, expected, rtol=0.0, atol=atol, err_msg=name)

    def leave(self, names):
        """Counts outputs as seen that are checked elsewhere; a caller says where."""
        present = filter(self.has, names)
        self.checked.update({name: np.asarray(self.arrays[f"out/{name}"], np.float64) for name in present})

    def has(self, name):
        """Whether the fixture has this output: another set may lack some."""
        return f"out/{name}" in self.arrays

    def outputs(self):
        return {name.removeprefix("out/") for name in self.arrays if name.startswith("out/")}


def load(name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Fixture(json.loads((FOLDER / f"{name}.json").read_text()), dict(arrays))


def with_slack(fixture, check):
    """The fixture for float32, with what rounding its inputs does to our float64 outputs."""
    rounded = dataclasses.replace(fixture, slack={}, checked={})
    with jax.enable_x64(True):
        check(rounded)
    slack = {name: np.abs(value - fixture.arrays[f"out/{name}"]) for name, value in rounded.checked.items()}
    return dataclasses.replace(fixture, slack=slack, checked={})
