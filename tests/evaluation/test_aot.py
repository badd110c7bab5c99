"""`benchmarks/aot.py` compiles the programs of a config for two devices, and refuses what cannot be compiled."""

import importlib.util
import json
import subprocess
import sys

import jax
import pytest

from benchmarks import aot
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.programs import step_of
from tests import tiny

CONFIG = "configs/cld_toy.py:quick"


def run(*arguments):
    command = [sys.executable, "benchmarks/aot.py", f"--config={CONFIG}", *arguments]
    return subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def rows():
    small = "--config.parallel.smallest=1"
    done = run("--topology=cpu:2", "--parallel=fsdp", small, "--what=all", "--json")
    assert done.returncode == 0, done.stderr
    assert "compiling ..." in done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["program"]: row for row in found}


def test_the_state_is_sharded_and_donated(rows):
    state = tiny.training_state(load_config(str(tiny.ROOT / CONFIG), []))
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    sizes, batch = rows["step"]["bytes"], 32 * 2 * 4
    assert whole / 2 < sizes["argument"] - batch < 0.6 * whole
    assert sizes["alias"] > 0.98 * (sizes["argument"] - batch)


def test_parameters_are_gathered_once_and_gradients_reduced(rows):
    collectives = rows["step"]["collectives"]
    assert collectives["all-gather"]["bytes"] > 0
    assert collectives["all-reduce"]["bytes"] > 0
    assert all(traffic["in_loops"] == 0 for traffic in collectives.values())


@pytest.mark.parametrize("program", ["sample", "likelihood"])
def test_no_batch_is_gathered_in_the_loop_of_a_solver(rows, program):
    assert None in rows[program]["loops"]
    assert rows[program]["collectives"]["all-gather"]["in_loops"] == 0


def test_a_row_takes_the_place_of_the_one_before(rows, tmp_path):
    table = tmp_path / "results.md"
    table.write_text(f"text\n\n{aot.HEADER}\n|{'---|' * len(aot.COLUMNS)}\n\nmore\n")
    fit = {
        "hbm_gib": 16,
        "bound": {"compute": 1.0, "memory": 2.0, "links": 0.5, "seconds": 2.0, "limit": "memory"},
    }
    fit |= {"compiler_seconds": 3.0, "mfu_bound": 0.5, "mfu_compiler": 0.3, "days": 1.5}
    for config, days in (("a", 1.5), ("b", 1.5), ("a", 2.5)):
        aot.write_row(table, rows["step"] | fit | {"config": config, "days": days})
    lines = table.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("text", "more")
    written = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:-2]]
    assert [(row[0], row[-2]) for row in written] == [("b", "1.5"), ("a", "2.5")]
    assert all(len(row) == len(aot.COLUMNS) for row in written)
    aot.write_row(table, {**rows["step"], "config": "b", "does_not_fit": "too large"})
    assert "too large" in table.read_text()


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v9:2x2", "--topology=v9:2x2: v9 is none of v4, v5e, v5p, v6e, cpu"),
        ("cpu:many", "--topology=cpu:many: give a number of devices, such as cpu:8"),
    ],
)
def test_an_unknown_topology_is_refused_in_one_line(topology, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["aot.py", f"--config={CONFIG}", f"--topology={topology}"])
    with pytest.raises(SystemExit) as ended:
        aot.main()
    assert ended.value.code == f"error: {message}"


def test_devices_that_cannot_share_the_batch_are_refused():
    config = load_config(str(tiny.ROOT / CONFIG), ["--config.train.grad_accum_steps=3"])
    with pytest.raises(ConfigError, match="batch_size=64 does not divide over 1 devices in 3 micro-batches"):
        step_of(experiment(config), tuple(jax.devices()))


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is there")
def test_without_libtpu_the_command_that_installs_it_is_named():
    with pytest.raises(ConfigError, match=r'pip install "jax\[tpu\]"'):
        aot.devices_of("v5e:4x4")
