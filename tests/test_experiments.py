"""The ablations' configs exist, and their tables and conclusions say what the rows say."""

import math

import pytest

from experiments import ablation, end_to_end, latent_or_pixels, latent_process, tolerance, trials
from lsgm_jax.build import build_model, build_sampler
from lsgm_jax.config import differences

TRIALS = [ablation.trial(process, *cell) for process in ablation.PROCESSES for cell in ablation.CELLS]


def rows(values, key="nelbo"):
    """A table of two seeds: what is not given is a constant."""
    table = []
    for trial, pair in values.items():
        for seed, value in enumerate(pair):
            row = {"trial": trial, "seed": seed, "nelbo": 1.0, "fid": 2.0, "diverged": ""}
            table.append(row | {key: value})
    return table


@pytest.mark.parametrize("trial", [*TRIALS, *end_to_end.TRIALS], ids=lambda trial: trial.name)
def test_trials_are_configs(trial):
    config = trials.load(trials.SIZES["quick"], trial.fields)
    model = build_model(config)
    assert model.objective.control_variate == trial.fields.get("objective.control_variate", True)
    build_sampler(config)


@pytest.mark.parametrize("size", trials.SIZES)
def test_every_size_is_a_config_of_both_kinds(size):
    latent = trials.load(trials.SIZES[size], {})
    pixels = trials.load(latent_or_pixels.PIXELS[size], {})
    assert build_model(latent).data_shape == build_model(pixels).data_shape


@pytest.mark.parametrize("size", trials.SIZES)
def test_both_processes_have_a_config_of_the_same_autoencoder_and_network(size):
    vp, cld = (
        trials.load(latent_process.setup(size, process), latent_process.TRIALS[process].fields)
        for process in ("vp-normal", "cld")
    )
    changed = [text.split("=")[0] for text in differences(vp, cld)]
    assert changed
    assert all(key.startswith("process.") for key in changed)


def test_curves_go_by_evaluations_over_seeds():
    row = lambda seed, setting, nfe, distance: {
        "process": "cld", "solver": "SSCS", "seed": seed, "setting": setting, "nfe": nfe, "energy_distance": distance
    }  # fmt: skip
    rows = [row(0, "b", 20, 0.1), row(1, "b", 20, 0.3), row(0, "a", 10, 0.4), row(1, "a", 10, 0.4)]
    assert latent_process.curve(rows, "cld", "SSCS") == [(10.0, 0.4, 0.0), (20.0, 0.2, pytest.approx(0.1))]


def test_tolerances_are_compared_seed_by_seed():
    row = lambda setting, nfe, distance: {
        "solver": "Tsit5", "setting": setting, "nfe": nfe, "energy_distance": distance
    }  # fmt: skip
    rows = [row("tolerance 0.01", 20, 0.2), row("tolerance 0.01", 20, 0.5)]
    rows += [row("tolerance 1e-05", 80, 0.1), row("tolerance 1e-05", 80, 0.4)]
    found = tolerance.compare(rows, "Tsit5", 1e-2)
    assert "4.0 times fewer evaluations, energy distance to the data +0.1000 ± 0.0000" in found


def test_means_leave_out_what_was_lost():
    assert trials.over_seeds([1.0, math.nan, 3.0]) == (2.0, 1.0)
    assert all(math.isnan(value) for value in trials.over_seeds([math.nan]))
    table = trials.summary(rows({"a": (1.0, 3.0), "b": (math.nan, 5.0)}), {"nelbo": "NELBO"})
    assert "| a | 2.00 ± 1.00 |" in table
    assert "1 of 2 lost" in table


def test_pairs_are_compared_seed_by_seed():
    found = trials.paired(rows({"a": (1.0, 13.0), "b": (2.0, 12.0)}), "a", "b", "nelbo")
    assert found == "+0.00 ± 1.00 (-+)"


def test_claims_follow_the_rows():
    values = {trial.name: (90.0, 91.0) for trial in TRIALS}
    table = rows(values | {"vp-un-optimal-own": (80.0, 81.0), "vp-re-uniform-shared": (math.nan, 90.0)})
    table[0]["diverged"] = "loss=nan at step 3"
    lines = ablation.claims(table)
    assert "The lowest NELBO has vp-un-optimal-own" in lines[0]
    assert any(
        "vp-ll-optimal-shared less vp-un-optimal-own: NELBO +10.00 ± 0.00 (++)" in line for line in lines
    )
    assert any(
        "vp-re-optimal-shared less vp-re-uniform-shared, NELBO: +1.00 ± nan (?+)" in line for line in lines
    )
    assert f"Diverged: {table[0]['trial']}" in lines[-1]


def test_a_copy_is_whole_and_made_once(tmp_path):
    """What an interrupted copy left does not count, and a second copy changes nothing."""
    source, target = tmp_path / "a", tmp_path / "b" / "vae"
    trials._copy_once(source, target)
    assert not target.exists()
    source.mkdir()
    (source / "weights").write_text("1")
    (target.parent / ".vae.partial").mkdir(parents=True)
    trials._copy_once(source, target)
    (source / "weights").write_text("2")
    trials._copy_once(source, target)
    assert [(path.name, path.read_text()) for path in target.iterdir()] == [("weights", "1")]
    assert [path.name for path in target.parent.iterdir()] == ["vae"]
