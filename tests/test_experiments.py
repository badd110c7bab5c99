"""The configs of the experiments can be built, and their tables and conclusions agree with the rows."""

import argparse
import math

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import (
    ablation,
    cld_ablation,
    cld_toys,
    controllers,
    end_to_end,
    exact_score,
    few_steps,
    latent_or_pixels,
    latent_process,
    mixture_likelihood,
    tolerance,
    toys,
    trials,
)
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import differences
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.data.points import DISTRIBUTIONS, PointSpec
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.linear import sample_prior
from lsgm_jax.processes.vp import VP
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence, log_density
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler

TRIALS = [ablation.trial(process, *cell) for process in ablation.PROCESSES for cell in ablation.CELLS]


def rows(values, key="nelbo"):
    """Returns a table of two seeds with constants for all other columns."""
    table = []
    for trial, pair in values.items():
        for seed, value in enumerate(pair):
            row = {"trial": trial, "seed": seed, "nelbo": 1.0, "fid": 2.0, "diverged": ""}
            table.append(row | {key: value})
    return table


@pytest.mark.parametrize("trial", [*TRIALS, *end_to_end.TRIALS], ids=lambda trial: trial.name)
def test_trials_are_configs(trial):
    planned = experiment(trials.load(trials.SIZES["quick"], trial.fields))
    expected = trial.fields.get("objective.control_variate", True)
    assert planned.model.prior.objective.control_variate == expected


@pytest.mark.parametrize("size", trials.SIZES)
def test_every_size_has_a_config_in_latent_and_in_pixel_space(size):
    latent = trials.load(trials.SIZES[size], {})
    pixels = trials.load(latent_or_pixels.PIXELS[size], {})
    assert experiment(latent).model.data_shape == experiment(pixels).model.data_shape


@pytest.mark.parametrize("size", trials.SIZES)
def test_both_processes_have_a_config_of_the_same_autoencoder_and_network(size):
    vp, cld = (
        trials.load(latent_process.setup(size, process), latent_process.TRIALS[process].fields)
        for process in ("vp-normal", "cld")
    )
    changed = [text.split("=")[0] for text in differences(vp, cld)]
    assert changed
    assert all(key.startswith("process.") for key in changed)


def test_curves_are_means_over_seeds_ordered_by_nfe():
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


def test_means_ignore_values_that_are_not_finite():
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
    assert "vp-un-optimal-own has the lowest NELBO" in lines[0]
    assert any(
        "vp-ll-optimal-shared minus vp-un-optimal-own: NELBO +10.00 ± 0.00 (++)" in line for line in lines
    )
    assert any(
        "vp-re-optimal-shared minus vp-re-uniform-shared, NELBO: +1.00 ± nan (?+)" in line for line in lines
    )
    assert f"Diverged: {table[0]['trial']}" in lines[-1]


def test_a_copy_is_atomic_and_made_once(tmp_path):
    """A partial copy of an interrupted call is ignored, and a second copy changes nothing."""
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


# In the plane

TOYS = [toys.trial(toy, process) for toy in toys.TOYS for process in toys.PROCESSES]
IN_THE_PLANE = [
    *TOYS,
    *mixture_likelihood.trials("quick"),
    *cld_ablation.CONSTANTS,
    *cld_ablation.OBJECTIVES,
]


@pytest.mark.parametrize(
    "trial", {trial.name: trial for trial in IN_THE_PLANE}.values(), ids=lambda trial: trial.name
)
def test_trials_in_the_plane_are_configs(trial):
    prior = experiment(trials.load(toys.SIZES["quick"], trial.fields)).model.prior
    assert (prior.start is not None) == trial.name.startswith("plain")
    assert prior.objective.density.t_min == 1e-5


def test_trials_of_one_name_are_one_trial():
    """Experiments with one output folder share trials, so one name must mean one config."""
    fields = {}
    for trial in IN_THE_PLANE:
        assert fields.setdefault(trial.name, trial.fields) == trial.fields


@pytest.mark.parametrize("process", cld_toys.LINES)
def test_every_line_spends_its_budget(process, tmp_path):
    """The unused rest is less than the cost of a step; adaptive lines have tolerances instead."""
    config = trials.load(toys.SIZES["cpu"], toys.trial("gaussians", process).fields)
    run = Run(tmp_path, config, experiment(config))
    for line in cld_toys.LINES[process]:
        for name, overrides in cld_toys.settings(run, line, (20, 51)):
            sampler = run.overridden(overrides).experiment.sampler
            if name.startswith("NFE"):
                cost = sampler.method.cost
                spent = cost.first + cost.extra + cost.per_step * sampler.steps.steps
                assert 0 <= int(name.removeprefix("NFE ")) - spent < cost.per_step
            else:
                assert f"{sampler.steps.rtol:g}" in name


def toy_rows(value, seeds=(0, 1)):
    """Returns a table where every line has `value(process, solver, nfe, seed)` on all distributions and seeds."""
    return [
        cld_toys.make_row(toy, seed, process, line.name, setting, {"nfe": nfe, "failed": 0} | found)
        for toy in toys.TOYS
        for seed in seeds
        for process, lines in cld_toys.LINES.items()
        for line in lines
        for nfe in (20, 50)
        for setting in [f"NFE {nfe}"]
        for found in [dict.fromkeys(toys.METRICS, value(process, line.name, nfe, seed))]
    ]


def test_tables_of_solvers_have_the_mean_over_seeds():
    """SSCS is far from the data at an NFE of 20 and near at 50; all other lines are near."""

    def value(process, solver, nfe, seed):
        return 0.01 + (solver == "SSCS, quadratic" and nfe == 20) * (0.1, 0.3)[seed]

    table = toy_rows(value)
    for toy in toys.TOYS:
        table.append(cld_toys.make_row(toy, 0, *cld_toys.FLOOR.values(), "", {"nfe": 0, toys.KEY: 0.01}))
    lines = cld_toys.table(table, "diamonds", toys.KEY, (20, 50)).splitlines()
    assert lines[5] == "| CLD, SSCS, quadratic | 210.0 ± 100.0 | 10.0 ± 0.0 |"
    assert lines[-1] == "| fresh draws of the data | 10.0 | |"
    (found,) = cld_toys.conclusions(table, (20, 50))
    assert "CLD, SSCS, uniform: 20; CLD, SSCS, quadratic: 50" in found


def test_solvers_are_compared_seed_by_seed():
    """SSCS minus EM is -0.001 with seed 0 and 0.003 with seed 1 on a quadratic grid; all else is the same."""
    table = [
        {"toy": toy, "seed": seed, "line": line, "nfe": nfe, "sliced_wasserstein": 0.02 + less}
        for toy in few_steps.COLUMNS
        for line in few_steps.LINES
        for nfe in few_steps.BUDGETS
        for seed, less in enumerate((-0.001, 0.003) if line == "CLD SSCS quadratic" else (0.0, 0.0))
    ]
    expected = "| CLD SSCS quadratic minus CLD EulerMaruyama quadratic | 20 | +1.00 ± 2.00 (-+) |"
    assert few_steps.compare(table).splitlines()[2].startswith(expected)
    assert "in 5 of 10 at 20 NFE, 5 of 10 at 50 NFE" in few_steps.conclusions(table)[0]
    assert "in 0 of 10 at 20 NFE" in few_steps.conclusions(table)[1]


def test_figures_are_drawn(tmp_path):
    options = argparse.Namespace(out=tmp_path, name="drawn", size="cpu", seeds=[0])
    rows = toy_rows(lambda *where: 0.1, seeds=(0,))
    cld_toys.draw(options, [*rows, cld_toys.make_row("diamonds", 0, "data", "fresh draws", "", rows[0])])
    assert plt.imread(tmp_path / "drawn.png").shape[-1] == 4


@pytest.mark.parametrize("process", [CLD(), VP()], ids=["cld", "vp"])
def test_the_flow_of_the_exact_score_has_the_density_of_the_mixture(process):
    """log p(x) by the flow of the exact score is that of the mixture; for CLD the bound is tight."""
    x = whole_split(PointSpec(source="gaussians"), "test")[:20]
    sampler = Sampler(method=METHODS["Dopri5"](), steps=Adaptive(rtol=1e-5, atol=1e-5), t_min=1e-4)
    eps, exact = exact_score.exact_eps(process), Divergence(name="exact")
    find = lambda x: log_density(sampler, process, eps, jax.random.key(0), x, exact).log_prob
    expected = DISTRIBUTIONS["gaussians"].log_density(x.astype(np.float64))
    np.testing.assert_allclose(jax.jit(find)(x), expected, atol=0.02)


def test_tables_are_read_as_they_were_written(tmp_path):
    table = [{"name": "a, b", "count": 3, "value": 0.1, "lost": math.inf, "none": ""}]
    assert trials.read_table(tmp_path / "t.csv") == []
    trials.write_table(tmp_path / "t.csv", table)
    (row,) = trials.read_table(tmp_path / "t.csv")
    assert row == table[0]
    assert [type(value) for value in row.values()] == [str, int, float, float, str]


def test_stability_is_that_of_the_second_half(tmp_path):
    logged = [(9.0, 90.0), (9.0, 80.0), (1.0, 2.0), (3.0, 5.0), (2.0, 3.0)]
    lines = [f"train,{loss},{norm}" for loss, norm in logged] + ["validation,,"]
    (tmp_path / "metrics.csv").write_text("\n".join(["split,loss,gradient_norm", *lines]))
    found = cld_ablation.second_half(tmp_path / "metrics.csv")
    np.testing.assert_allclose(found["loss_spread"], np.std([1.0, 3.0, 2.0]) / 2.0)
    assert (found["gradient_median"], found["gradient_largest"]) == (3.0, 5.0)


def test_verdicts_follow_the_mean_over_seeds():
    values = {"near": (0.01, 0.02), "far": (0.01, 0.05)}
    lines = mixture_likelihood.conclusions(rows(values, key="excess"))
    assert lines == [
        "near: +0.0150 nats above the ground truth on average, within 0.02.",
        "far: +0.0300 nats above the ground truth on average, NOT within 0.02.",
    ]


# Controllers of step sizes


def points(errors, scale):
    """Rows of a solver whose error falls with the fifth power of its NFE."""
    return [{"error": error, "nfe": scale * error**-0.2} for error in errors]


def test_nfe_is_compared_at_equal_errors():
    """A solver of half the NFE, measured at other errors, needs half."""
    base, half = points((1e-2, 1e-3, 1e-5), 100.0), points((3e-3, 2e-4), 50.0)
    assert controllers.relative_nfe(half, base) == pytest.approx(0.5)
    assert controllers.relative_nfe(base, base) == pytest.approx(1.0)


def test_traced_steps_are_those_of_constant_settings(x64):
    """So that one compiled solve serves all coefficients and tolerances."""
    process = VP()
    z_1 = sample_prior(process, jax.random.key(0), (3, 2))
    problem = controllers.samples(process, exact_score.exact_eps(process), z_1)
    traced = controllers.compiled(problem, "Tsit5", None, "batch")(jnp.array([1e-3, 0.2, 0.4, 0.9, 10.0]))
    steps = Adaptive(rtol=1e-3, atol=1e-3, per="batch")
    constant = jax.jit(
        lambda: problem(Sampler(steps=steps, method=METHODS["Tsit5"](), t_min=controllers.T_MIN))
    )()
    np.testing.assert_allclose(traced[0], constant[0], rtol=1e-7)
    assert int(traced[1]) == int(constant[1])
