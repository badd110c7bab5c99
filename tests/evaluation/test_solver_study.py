"""A study of solvers: what it measures, that it resumes, and what it refuses."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image

from lsgm_jax.cli import main as cli
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation import solver_study, study_rows
from lsgm_jax.evaluation.fid import energy_distance
from lsgm_jax.sampling.run import Run
from tests.tiny import ROOT

TOY = f"--config={ROOT}/configs/cld_toy.py:quick"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A VPSDE on points, trained for seconds."""
    folder = tmp_path_factory.mktemp("toy")
    fields = [
        "--config.process.name=vp",
        "--config.objective.mixed_score=gaussian",
        "--config.data.source=gaussians",
    ]
    assert cli.main(["train", TOY, f"--workdir={folder}", *fields]) == 0
    return folder


def command(workdir, *more):
    return cli.main(
        ["study", f"--workdir={workdir}", "--count=50", "--solvers=Heun,DDIM,EulerMaruyama", *more]
    )


def test_a_study_measures_and_resumes(workdir, capsys, monkeypatch):
    assert command(workdir, "--nfe=4,32", "--rtol=1e-4") == 0
    rows = list(csv.DictReader((workdir / "study" / "study.csv").open()))
    assert [(row["solver"], row["nfe"]) for row in rows if "tolerance" not in row["setting"]] == [
        ("Heun", "4"),
        ("Heun", "32"),
        ("DDIM", "4"),
        ("DDIM", "32"),
        ("EulerMaruyama", "4"),
        ("EulerMaruyama", "32"),
    ]
    rms = {(row["solver"], row["setting"]): row["rms_latent"] for row in rows}
    assert rms["EulerMaruyama", "32 quadratic steps"] == ""  # it follows no path
    assert float(rms["Heun", "tolerance 0.0001"]) < 1e-3
    assert float(rms["DDIM", "32 linear steps"]) < float(
        rms["DDIM", "4 linear steps"]
    )  # each on its own grid
    assert Image.open(workdir / "study" / "study.png").width > 400
    table = capsys.readouterr().out
    assert table.count("| Heun |") == 3
    # The second time only what is new is measured.
    drawn = []
    real = solver_study._draw
    monkeypatch.setattr(solver_study, "_draw", lambda *args: drawn.append(1) or real(*args))
    assert command(workdir, "--nfe=4,8,32", "--rtol=1e-4") == 0
    assert len(drawn) == 3
    assert "| Heun | 4 quadratic steps | 8 |" in capsys.readouterr().out


def test_budgets_buy_the_steps_that_they_pay_for(workdir):
    run = Run.open(workdir, ["--config.sampling.denoise=mean"])
    settings = solver_study.make_settings(run, ["Heun", "Tsit5", "DDIM"], [8, 8], [], "linear")
    assert [(s.solver, s.name) for s in settings] == [
        ("Heun", "3 linear steps"),
        ("Tsit5", "1 linear steps"),
        ("DDIM", "7 linear steps"),
    ]


def test_what_cannot_be_studied_is_refused_in_one_line(workdir, capsys):
    run = Run.open(workdir)
    with pytest.raises(ConfigError, match="solver 'SSCS' is for CLD"):
        solver_study.make_settings(run, ["SSCS"], [8], [], "linear")
    with pytest.raises(ConfigError, match=r"solver.name='Hen' is none of .*did you mean 'Heun'"):
        solver_study.make_settings(run, ["Hen"], [8], [], "linear")
    with pytest.raises(ConfigError, match=r"--nfe=3 buys no step of Dopri8: give more"):
        solver_study.make_settings(run, ["Dopri8"], [3], [], "linear")
    assert command(workdir, "--nfe=few") == 2
    assert "--nfe=few: invalid int value: 'few'" in capsys.readouterr().err
    assert command(workdir, "--nfe=4") == 0
    capsys.readouterr()
    assert command(workdir, "--nfe=4", "--seed=5") == 2
    assert "holds a study of 50 samples, seed 0" in capsys.readouterr().err
    assert command(workdir, "--nfe=4", "--temperature=0.5") == 2
    assert "not of 50 samples, seed 0" in capsys.readouterr().err


def test_other_parameters_of_the_same_step_are_another_study(workdir, capsys, monkeypatch):
    assert command(workdir, "--nfe=4", "--rtol=1e-1") == 0
    params, step = Run.open(workdir).best()
    monkeypatch.setattr(Run, "best", lambda self: (jax.tree.map(lambda leaf: 1.001 * leaf, params), step))
    assert command(workdir, "--nfe=4", "--rtol=1e-1") == 2
    assert f"of step {step}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("damage", [("8,8.0", "9,8.0"), ("Heun", "Hexn"), ("failed", "f\niled")])
def test_a_damaged_study_is_renamed_and_measured_again(tmp_path, capsys, damage):
    """Also one of an older version, without a checksum, if it cannot be read."""
    path = tmp_path / "study.csv"
    study_rows.write_rows(path, [study_rows.Row("Heun", "4 steps", 8, 8.0, 0.5, None, 0.25, None, 0)])
    path.write_text(path.read_text().replace(*damage))
    assert list(study_rows.read_rows(path)) == []
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("renamed to study.csv.damaged, and its rows are measured again")
    (tmp_path / ".study.csv.sha256").unlink()
    path.write_text("solver,setting\nHeun,4 steps\n")
    assert list(study_rows.read_rows(path)) == []
    assert (tmp_path / "study.csv.damaged2").exists()


def test_the_energy_distance_of_equal_distributions_is_zero():
    """And that of two points their distance twice."""
    rng = np.random.default_rng(0)
    same = [energy_distance(rng.normal(size=(200, 3)), rng.normal(size=(200, 3))) for _ in range(20)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(20)
    shifted = energy_distance(rng.normal(size=(200, 3)), rng.normal(size=(200, 3)) + 1.0)
    assert shifted > 10 * np.std(same)
    np.testing.assert_allclose(energy_distance(np.zeros((3, 2)), np.full((4, 2), 3.0)), 2 * np.sqrt(18))


def test_rows_survive_the_file(tmp_path):
    row = study_rows.Row("Heun", "4 steps", 8, 8.0, 0.5, None, 0.25, None, 0)
    study_rows.write_rows(tmp_path / "study.csv", [row])
    assert list(study_rows.read_rows(tmp_path / "study.csv")) == [row]
