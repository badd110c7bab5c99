"""What the command keeps of compiled programs, for the next one."""

import os
import sys

import jax
import jax.numpy as jnp

from lsgm_jax.cli import main as cli
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler, solve_to_data
from lsgm_jax.solvers.terms import KeyedNoise

SETTINGS = ("EQX_ON_ERROR", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def test_the_command_caches_programs_unless_the_user_says_otherwise(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "jax")
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    cli._keep_compiled()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "lsgm_jax" / "compiled")
    assert [os.environ[name] for name in (SETTINGS[0], SETTINGS[2])] == ["nan", "0.1"]
    own = {"EQX_ON_ERROR": "raise", "JAX_COMPILATION_CACHE_DIR": "", SETTINGS[2]: "60"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    cli._keep_compiled()
    assert {name: os.environ[name] for name in SETTINGS} == own


def test_programs_of_fixed_steps_call_nothing_back():
    """JAX caches no program that does. These tests run with the command's EQX_ON_ERROR."""
    sampler = Sampler(method=METHODS["Heun"](), steps=Linear(steps=3), t_min=0.1)
    noise = KeyedNoise(jax.random.key(0))
    solve = jax.jit(lambda z: solve_to_data(sampler, VP(), lambda z_t, t: 0.1 * z_t, z, noise).z_0)
    assert "callback" not in solve.lower(jnp.ones((2, 1))).as_text()
