"""metrics.csv and TensorBoard: what a run writes while it trains, and what damage does to it."""

import csv
import pathlib
import re
import time

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from lsgm_jax.training import logs
from lsgm_jax.training.logs import MetricsLog, compiling, progress_bar


def rows(workdir):
    table = csv.DictReader((workdir / "metrics.csv").open())
    return [(row["stage"], row["step"], row["split"], row["loss"]) for row in table]


def write(workdir, steps, resumed=0):
    workdir.mkdir(exist_ok=True)
    with MetricsLog(workdir, "score", resumed) as log:
        for step in steps:
            log.scalars(step, "train", {"loss": step / 3})


def expected(*steps):
    return [("score", str(step), "train", f"{step / 3:.6g}") for step in steps]


def events(workdir):
    """Returns the events of all files, in the format of TFRecord, which has the length of each in its first 8 bytes."""
    found = []
    for path in sorted((workdir / "tensorboard" / "score").iterdir()):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


def test_a_resumed_log_is_the_one_of_an_uninterrupted_run(tmp_path):
    write(tmp_path / "a", [1, 2, 3, 4])
    write(tmp_path / "b", [1, 2, 3])
    write(tmp_path / "b", [3, 4], resumed=2)
    assert rows(tmp_path / "a") == rows(tmp_path / "b") == expected(1, 2, 3, 4)
    names = [file.read_bytes() for file in (tmp_path / "a" / "metrics.csv", tmp_path / "b" / "metrics.csv")]
    assert names[0] == names[1]


def test_a_new_metric_gets_a_column_and_older_rows_an_empty_cell(tmp_path):
    with MetricsLog(tmp_path, "score", 0) as log:
        log.scalars(1, "train", {"loss": 1.0})
        log.scalars(2, "train", {"loss": 2.0, "new": 0.5})
    table = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [(row["loss"], row["new"]) for row in table] == [("1", ""), ("2", "0.5")]


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(logs, "warn", said.append)
    return said


@pytest.mark.parametrize("position", [0, 20, 150, -3])
def test_a_damaged_file_is_renamed_and_nothing_is_lost(tmp_path, warnings, position):
    write(tmp_path, [1, 2])
    path = tmp_path / "metrics.csv"
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    write(tmp_path, [3], resumed=2)
    assert rows(tmp_path) == expected(3)
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == content
    (warning,) = warnings
    assert re.search(
        r"metrics\.csv is damaged: .*: renamed to metrics\.csv\.damaged, and a new one begins", warning
    )


def test_damage_while_it_is_written_is_noticed_too(tmp_path, warnings):
    with MetricsLog(tmp_path, "score", 0) as log:
        log.scalars(1, "train", {"loss": 1 / 3})
        path = tmp_path / "metrics.csv"
        path.write_bytes(path.read_bytes().replace(b"0.333", b"0.733"))
        log.scalars(2, "train", {"loss": 2 / 3})
    assert rows(tmp_path) == expected(2)
    assert len(warnings) == 1


def test_a_file_of_an_older_version_has_no_checksum(tmp_path, warnings):
    """Its last row may be half written; a row that is off elsewhere is damage."""
    write(tmp_path, [1, 2])
    (tmp_path / ".metrics.csv.sha256").unlink()
    path = tmp_path / "metrics.csv"
    content = path.read_text()
    path.write_text(content + "score,3,tr")
    write(tmp_path, [3], resumed=2)
    assert rows(tmp_path) == expected(1, 2, 3)
    assert warnings == []
    (tmp_path / ".metrics.csv.sha256").unlink()
    path.write_text(content.replace("score,1,", "score,one,"))
    write(tmp_path, [3], resumed=2)
    assert len(warnings) == 1
    (tmp_path / ".metrics.csv.sha256").unlink()
    path.write_text("\0\0\0\n")
    write(tmp_path, [3], resumed=2)
    assert len(warnings) == 2


def test_tensorboard_has_the_scalars_and_the_pictures(tmp_path):
    with MetricsLog(tmp_path, "score", 0) as log:
        log.scalars(5, "train", {"loss": 0.25, "nelbo": 2.0})
        log.image(5, "samples", np.zeros((4, 6, 3), np.uint8))
    found = events(tmp_path)
    scalars = {v.tag: (e.step, v.simple_value) for e in found for v in e.summary.value if not v.image.width}
    assert scalars == {"train/loss": (5, 0.25), "train/nelbo": (5, 2.0)}
    assert [
        (v.tag, v.image.height, v.image.width) for e in found for v in e.summary.value if v.image.width
    ] == [("samples", 4, 6)]


def test_tensorboard_forgets_the_steps_after_the_checkpoint(tmp_path):
    write(tmp_path, [1, 2, 3])
    write(tmp_path, [3], resumed=2)
    starts = [event for event in events(tmp_path) if event.HasField("session_log")]
    assert [event.step for event in starts] == [3]


def test_a_full_disk_ends_the_log_with_the_name_of_the_file(tmp_path, monkeypatch):
    """At once: no thread of TensorBoard's has the error to itself."""
    with pathlib.Path("/dev/full").open("wb", buffering=0) as full, MetricsLog(tmp_path, "score", 0) as log:
        monkeypatch.setattr(log._events._writer._py_recordio_writer, "_writer", full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            log.scalars(1, "train", {"loss": 1.0})
    assert str(caught.value.filename).startswith(f"{tmp_path}/tensorboard/score/events.out.tfevents.")


def test_a_bar_says_that_the_compiler_is_at_work(capsys, monkeypatch):
    with progress_bar("vae", 0, 10) as bar:
        monkeypatch.setattr(bar, "mininterval", 0.0)
        with compiling(bar, " initial parameters"):
            time.sleep(2.2)
        bar.update(1)
    err = capsys.readouterr().err
    assert re.findall(r"compiling initial parameters, (\d) s", err) == ["1", "2"]
    assert "compiling" not in re.split(r"[\r\n]", err)[-2]
