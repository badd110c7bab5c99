"""A run that is killed, stopped or out of disk space resumes and ends like an undisturbed run."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from lsgm_jax.cli import main as cli
from lsgm_jax.config.load import load_config
from lsgm_jax.errors import CheckpointError
from lsgm_jax.sampling.run import Run
from lsgm_jax.training.checkpoint import Checkpoints
from tests import tiny
from tests.training.test_divergence import CONFIG, rows, saved

# Steps of a few milliseconds each, and a checkpoint after every fourth.
LENGTH = ("train.steps=120", "train.log_every=4", "train.eval_every=4", "train.keep=3")


def command(workdir, *overrides):
    overrides = [f"--config.{override}" for override in (*LENGTH, *overrides)]
    return ["train", f"--config={CONFIG}", f"--workdir={workdir}", *overrides]


def start(workdir, *overrides):
    """Starts the command in a separate process."""
    arguments = [sys.executable, "-m", "lsgm_jax.cli", *command(workdir, *overrides)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(arguments, cwd=tiny.ROOT, env=environment, text=True, **pipes)


def newest(workdir):
    """Returns the step of the newest checkpoint, 0 if there is none."""
    folders = (workdir / "checkpoints" / "score").glob("[0-9]*")
    return max((int(path.name) for path in folders if path.name.isdigit()), default=0)


def wait_beyond(process, workdir, step):
    """Waits until there is a checkpoint after this step, or the process has ended."""
    while newest(workdir) <= step and process.poll() is None:
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(command(workdir)) == 0
    return workdir


def assert_same_end(workdir, undisturbed):
    tiny.assert_trees_equal(saved(workdir), saved(undisturbed))
    table = [
        [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows(w)]
        for w in (workdir, undisturbed)
    ]
    assert table[0] == table[1]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [2, 20])
def test_a_run_killed_at_random_moments_resumes(undisturbed, tmp_path, kills):
    """In a step, while a checkpoint is written or read: the next start always resumes."""
    rng, done, reached = random.Random(kills), 0, []
    steps = "train.steps=120" if kills == 2 else "train.steps=1200"
    if kills > 2:
        undisturbed = tmp_path / "undisturbed"
        assert cli.main(command(undisturbed, steps)) == 0
    workdir = tmp_path / "killed"
    while done < kills:
        process = start(workdir, steps)
        wait_beyond(process, workdir, newest(workdir))
        time.sleep(rng.uniform(0.0, 0.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            done += 1
        _, err = process.communicate()
        assert "Traceback" not in err
        reached.append(newest(workdir))
        if reached[-1] == int(steps.split("=")[1]):
            break
    print(f"killed {done} times; newest checkpoints {reached}")
    assert done == kills
    assert cli.main(command(workdir, steps)) == 0
    assert_same_end(workdir, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_stops(undisturbed, tmp_path, number):
    """Also between checkpoints: no step is lost."""
    process = start(tmp_path, "train.eval_every=1000")
    while not any(tmp_path.glob("metrics.csv")) or len(rows(tmp_path)) < 2:
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    (message,) = (line for line in err.splitlines() if "lsgm: " in line)
    step = newest(tmp_path)
    assert step > 0
    assert (
        f"lsgm: stopped by {number.name}; step {step} of stage score is saved, and the same command goes on"
        in message
    )
    assert "trained in" not in out
    assert cli.main(command(tmp_path)) == 0
    tiny.assert_trees_equal(saved(tmp_path), saved(undisturbed))


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def warnings(capsys):
    """Returns the warnings of the package, without those of libraries."""
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("lsgm: ")]


@pytest.mark.parametrize("damage", [truncate, pathlib.Path.unlink], ids=["truncated", "lost"])
def test_a_damaged_newest_checkpoint_is_moved_away(undisturbed, tmp_path, damage, capsys):
    """For each of its files: reading either does not need the file, or falls back to the checkpoint before."""
    number = newest(undisturbed)
    folder = pathlib.Path("checkpoints") / "score" / str(number)
    files = sorted(
        path.relative_to(undisturbed) for path in (undisturbed / folder).rglob("*") if path.is_file()
    )
    like = tiny.training_state(load_config(CONFIG, []))
    fell_back = set()
    for index, path in enumerate(files):
        workdir = tmp_path / str(index)
        shutil.copytree(undisturbed, workdir)
        damage(workdir / path)
        with Checkpoints(workdir / "checkpoints" / "score") as checkpoints:
            state, _ = checkpoints.restore(like)
        if int(state.step) < number:
            fell_back.add(path.relative_to(folder).parts[0])
            (warning,) = warnings(capsys)
            aside = workdir / "checkpoints" / "damaged" / f"score-{number}"
            assert warning.startswith(f"lsgm: warning: checkpoint {workdir / folder} is damaged (")
            assert warning.endswith(f"moved to {aside}; step {number - 4} is taken")
            assert aside.is_dir()
            assert newest(workdir) == number - 4
        elif path.parent.name == "metrics" and path.name == "metrics":
            (warning,) = warnings(capsys)
            assert warning.endswith("is damaged: it was restored from the record of the checkpoint")
            assert (workdir / path).read_bytes() == (undisturbed / path).read_bytes()
        else:
            assert warnings(capsys) == []
    assert fell_back >= {"state", "ema", "meta"}


def test_training_resumes_from_the_checkpoint_before_a_damaged_one(undisturbed, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    folder = workdir / "checkpoints" / "score"
    shutil.rmtree(folder / "120")
    for path in (folder / "116" / "state").rglob("*"):
        if path.is_file():
            truncate(path)
    assert cli.main(command(workdir)) == 0
    assert "step 112 is taken" in capsys.readouterr().err
    assert_same_end(workdir, undisturbed)
    assert (workdir / "checkpoints" / "damaged" / "score-116").is_dir()


def test_an_unknown_format_is_refused(undisturbed, tmp_path):
    """It does not count as damaged, because training would silently resume from an older checkpoint."""
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    path = workdir / "checkpoints" / "score" / "120" / "meta" / "metadata"
    path.write_text(json.dumps({"format": 5, "data": {}}))
    with (
        pytest.raises(
            CheckpointError, match=r"score/120 has format 5, this version reads 2, 3, 4: use the version"
        ),
        Checkpoints(workdir / "checkpoints" / "score") as checkpoints,
    ):
        checkpoints.restore(tiny.training_state(load_config(CONFIG, [])))
    with pytest.raises(CheckpointError, match=r"score/120 has format 5, this version reads 1, 2, 3, 4: use"):
        Run.open(workdir).best()


def test_a_full_disk(undisturbed, tmp_path):
    """The error is one line; with free space again the same command ends like an undisturbed run."""
    mount, after = tmp_path / "small", tmp_path / "after"
    mount.mkdir()
    enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
    make = f"mount -t tmpfs -o size=500k tmpfs {mount}"
    if shutil.which("unshare") is None or subprocess.run([*enter, make], check=False).returncode:
        pytest.skip("this system does not let users mount a file system of a fixed size")
    train = f"{sys.executable} -m lsgm_jax.cli {' '.join(command(mount / 'run'))}"
    program = f"{make} && {train}; status=$?; cp -r {mount}/run {after}; exit $status"
    done = subprocess.run([*enter, program], cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    (message,) = (line for line in done.stderr.splitlines() if "lsgm: " in line)
    step = newest(after)
    assert 0 < step < 120
    assert "No space left on device" in message
    assert message.endswith(f"with that fixed the same command goes on from step {step}, which is saved")
    assert cli.main(command(after)) == 0
    assert_same_end(after, undisturbed)


def test_a_read_only_folder_is_refused(undisturbed, tmp_path):
    """For a new run and for one that has begun."""
    for name in ("new", "begun"):
        folder = tmp_path / name
        shutil.copytree(undisturbed, folder) if name == "begun" else folder.mkdir()
        if name == "begun":
            shutil.rmtree(folder / "checkpoints" / "score" / "120")
        enter = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
        make = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
        if shutil.which("unshare") is None or subprocess.run([*enter, make], check=False).returncode:
            pytest.skip("this system does not let users mount a folder for reading only")
        train = f"{sys.executable} -m lsgm_jax.cli {' '.join(command(folder))}"
        done = subprocess.run(
            [*enter, f"{make} && {train}"], cwd=tiny.ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        (message,) = done.stderr.splitlines()
        assert (
            message
            == f"lsgm: error: cannot write to {folder} (Read-only file system): choose another --workdir"
        )
