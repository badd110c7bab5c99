"""Commands that are killed at random moments, twenty times each: the next start ends as if nothing had happened."""

import csv
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from lsgm_jax.sampling.run import Run
from tests import tiny

KILLS = 20
TRAIN = ["train", f"--config={tiny.ROOT}/configs/cld_toy.py:quick", "--config.train.keep=2"]
TIMES = ("seconds", "throughput", "images_per_second")  # what differs between two runs


def start(arguments):
    command = [sys.executable, "-m", "lsgm_jax.cli", *map(str, arguments)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def finish(arguments):
    """Runs the command to its end; returns the seconds that it took."""
    begin, process = time.monotonic(), start(arguments)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return time.monotonic() - begin


def kill_many_times(arguments, seconds, seed):
    """Starts the command, and kills it at random moments, `KILLS` times; returns how many kills found it running."""
    rng, found = random.Random(seed), 0
    for _ in range(KILLS):
        process = start(arguments)
        time.sleep(rng.uniform(0.2, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        found += process.returncode == -signal.SIGKILL
        assert "Traceback" not in err
        assert "lsgm: error:" not in err
    print(f"{arguments[0]}: {found} of {KILLS} kills found it running")
    return found


def report(workdir):
    entries = json.loads((workdir / "report.json").read_text())
    return {name: value for name, value in entries.items() if not any(word in name for word in TIMES)}


def table(path):
    rows = csv.DictReader(path.open())
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, trained without a kill, and the seconds that it took."""
    workdir = tmp_path_factory.mktemp("kills") / "trained"
    finish([*TRAIN, f"--workdir={workdir}"])  # fills the cache of compiled programs
    shutil.rmtree(workdir)
    return workdir, finish([*TRAIN, f"--workdir={workdir}"])


@pytest.mark.slow
def test_training_resumes_after_every_kill(trained, tmp_path):
    undisturbed, seconds = trained
    command = [*TRAIN, f"--workdir={tmp_path / 'killed'}"]
    found = kill_many_times(command, seconds, seed=1)
    finish(command)
    params, step = Run.open(tmp_path / "killed").best()
    expected, same = Run.open(undisturbed).best()
    assert step == same
    tiny.assert_trees_equal(params, expected)
    assert table(tmp_path / "killed" / "metrics.csv") == table(undisturbed / "metrics.csv")
    assert found > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample", ["--count=32"]),
        ("evaluate", ["--metrics=nelbo", "--samples=8"]),
        ("study", ["--solvers=Heun,SSCS", "--nfe=6,10", "--rtol=", "--count=64"]),
    ],
)
def test_a_command_ends_as_if_it_had_not_been_killed(trained, tmp_path, name, options):
    folders = [tmp_path / kind for kind in ("undisturbed", "killed", "first")]
    for folder in folders:
        shutil.copytree(trained[0], folder)
    undisturbed, killed, first = ([name, f"--workdir={folder}", *options] for folder in folders)
    finish(first)  # fills the cache of compiled programs
    seconds = finish(undisturbed)
    assert kill_many_times(killed, seconds, seed=2) > 0
    finish(killed)
    assert outcome_of(name, folders[1]) == outcome_of(name, folders[0])


def outcome_of(name, workdir):
    """Returns what the command wrote, without times."""
    if name == "study":
        return table(workdir / "study" / "study.csv")
    if name == "sample":
        with np.load(workdir / "samples.npz") as file:
            return report(workdir), {key: file[key].tobytes() for key in file.files}
    return report(workdir)


@pytest.mark.slow
def test_a_set_is_prepared_as_if_nothing_had_been_killed(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 1500), ("test", 200)):
        for index in range(count):
            path = tmp_path / "images" / split / str(index % 3) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
    command = ["data", "prepare", "folder", f"--source={tmp_path / 'images'}", "--name=noise"]
    undisturbed, killed = (tmp_path / name for name in ("undisturbed", "killed"))
    seconds = finish([*command, f"--data_dir={undisturbed}"])
    assert kill_many_times([*command, f"--data_dir={killed}"], seconds, seed=3) > 0
    finish([*command, f"--data_dir={killed}"])
    assert contents(killed) == contents(undisturbed) != {}


def contents(folder: pathlib.Path):
    """Returns the records of a prepared set in their order, which files pack differently from run to run."""
    (version,) = {path.parent for path in folder.rglob("*.array_record*")}
    sources = tfds.builder_from_directory(version).as_data_source()
    return {
        split: [{name: np.asarray(value).tobytes() for name, value in record.items()} for record in source]
        for split, source in sources.items()
    }
