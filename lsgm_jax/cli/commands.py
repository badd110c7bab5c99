"""What each command of `lsgm` calls, and prints. No work.

Loaded once the command line has been understood: usage errors should not wait for JAX.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from lsgm_jax.cli.parser import METRICS, ends, numbers, sampler_overrides
from lsgm_jax.config.build_models import build_model
from lsgm_jax.config.build_running import build_sampler
from lsgm_jax.config.load import load_config
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.sources import DATA_DIR
from lsgm_jax.distributed import launch
from lsgm_jax.errors import UsageError
from lsgm_jax.evaluation import likelihood, plots, report, sample_quality, solver_study
from lsgm_jax.evaluation.model_size import describe
from lsgm_jax.files import replacing
from lsgm_jax.interop.convert import convert
from lsgm_jax.sampling import inpaint as restore
from lsgm_jax.sampling import run
from lsgm_jax.sampling.trajectories import animate
from lsgm_jax.training.logs import CompileClock
from lsgm_jax.training.recipes.plan import bare_stages


def _agree(config: Any) -> None:
    """Several processes have to run the same config."""
    launch.agree("config", json.dumps(config.to_dict(), sort_keys=True))


def train_command(options: argparse.Namespace) -> None:
    """Trains, or goes on."""
    start, compiling = time.monotonic(), CompileClock()
    config = load_config(options.config, options.overrides)
    _agree(config)
    run.train(config, options.workdir, trace=options.profile)
    seconds = time.monotonic() - start
    _, step = run.Run.open(options.workdir).best()
    print(
        f"trained in {seconds:.0f} s, {compiling.seconds:.0f} s of it compiling; validation chose step {step}"
    )
    print(f"wrote {options.workdir}/checkpoints, metrics.csv and tensorboard")
    if options.profile:
        print(f"traced a few steps into {options.workdir}/profile: look at them with  tensorboard --logdir")


def sample_command(options: argparse.Namespace) -> None:
    """Draws samples."""
    opened = run.Run.open(options.workdir, [*sampler_overrides(options), *options.overrides])
    _agree(opened.config)
    sampler = build_sampler(opened.config)
    if options.count < 1:
        raise UsageError(f"--count={options.count}: draw at least one sample")

    asked = opened.conditions.ask(opened.model, options.count, label=options.label, prompt=options.prompt)
    params, step = opened.best(everywhere=True)
    drawn = run.sample(opened, params, sampler, options.count, options.seed, asked)
    failed = int((~drawn.solution.success).sum())
    if failed:
        print(
            f"lsgm: warning: {failed} of {options.count} samples ran out of steps",
            file=sys.stderr,
        )

    plots.save_png(options.workdir / "samples.png", plots.picture(drawn.x, opened.model.labels))
    plots.save_png(options.workdir / "comparison.png", run.compare(opened, drawn.x, options.seed))
    with replacing(options.workdir / "samples.npz") as partial, partial.open("wb") as file:
        np.savez_compressed(file, x=drawn.x, z_0=np.asarray(drawn.solution.z_0))
    nfe, mean = int(drawn.solution.nfe), float(drawn.solution.nfe_mean)
    report.add_to_report(
        options.workdir,
        nfe=nfe,
        nfe_mean=mean,
        sample_seconds=drawn.seconds,
        sample_compile_seconds=drawn.compile_seconds,
        sample_solver=sampler.method.name,
        sample_count=options.count,
        sample_seed=options.seed,
    )
    print(
        f"{options.count} samples of step {step} by {sampler.method.name}: NFE {nfe} (mean per sample {mean:.1f}), "
        f"{drawn.seconds:.2f} s after {drawn.compile_seconds:.1f} s of compilation"
    )
    print(f"wrote {options.workdir}/samples.png, comparison.png and samples.npz")


def inpaint_command(options: argparse.Namespace) -> None:
    """Fills in the hole of a picture."""
    opened = run.Run.open(options.workdir, [*sampler_overrides(options), *options.overrides])
    x = restore.read_picture(opened, options.image, "an image for this model")
    mask = restore.read_mask(opened, options.mask)
    sampler, (params, _) = build_sampler(opened.config), opened.best()
    several = lambda picture: np.repeat(picture[None], _at_least_one(options), axis=0)
    filled, success = restore.inpaint(
        opened, params, sampler, several(x), several(mask), jax.random.key(options.seed)
    )
    _show_restored(options, "inpainted.png", [x, (1.0 - mask) * x, *filled], success)


def upscale_command(options: argparse.Namespace) -> None:
    """Makes a small picture large."""
    opened = run.Run.open(options.workdir, [*sampler_overrides(options), *options.overrides])
    small = restore.read_small(opened, options.image)
    sampler, (params, _) = build_sampler(opened.config), opened.best()
    several = np.repeat(small[None], _at_least_one(options), axis=0)
    large, success = restore.upscale(opened, params, sampler, several, jax.random.key(options.seed))
    factor = large.shape[1] // len(small)
    blocks = small.repeat(factor, axis=0).repeat(factor, axis=1)
    _show_restored(options, "upscaled.png", [blocks, *large], success)


def _at_least_one(options: argparse.Namespace) -> int:
    if options.count < 1:
        raise UsageError(f"--count={options.count}: make at least one image")
    return options.count


def _show_restored(options: argparse.Namespace, name: str, panels: list[Any], success: Any) -> None:
    """What was given and what came of it, in a row; and each result in a file of its own."""
    _warn_of_failures(int((~success).sum()), "samples")
    path = options.out or options.workdir / name
    plots.save_png(path, plots.grid(np.stack(panels), columns=len(panels)))
    results = panels[-len(success) :]
    files = [path.with_stem(f"{path.stem}_{number}") for number in range(len(results))]
    for file, result in zip(files, results, strict=True):
        plots.save_png(file, plots.to_pixels(result))
    print(f"wrote {path} and {files[0]}{f' to {files[-1].name}' if len(files) > 1 else ''}")


def interpolate_command(options: argparse.Namespace) -> None:
    """Draws what lies between samples, or test images."""
    opened = run.Run.open(options.workdir, [*sampler_overrides(options), *options.overrides])
    if options.pairs < 1 or options.points < 2:
        raise UsageError(f"--pairs={options.pairs} --points={options.points}: give at least 1 and 2")
    asked = opened.conditions.ask(opened.model, options.pairs, label=options.label, prompt=options.prompt)
    params, _ = opened.best()
    try:
        picture = run.interpolate(
            opened,
            params,
            build_sampler(opened.config),
            between=options.between,
            pairs=options.pairs,
            points=options.points,
            seed=options.seed,
            asked=asked,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    plots.save_png(options.workdir / "interpolation.png", picture)
    what = {"noise": "draws of noise", "test": "test images"}[options.between]
    print(f"wrote {options.workdir}/interpolation.png: {options.pairs} rows between {what}")


def animate_command(options: argparse.Namespace) -> None:
    """Draws samples on their way."""
    opened = run.Run.open(options.workdir, [*sampler_overrides(options), *options.overrides])
    if options.frames < 2:
        raise UsageError(f"--frames={options.frames}: give at least 2, one of noise and one of data")
    if options.count is not None and options.count < 1:
        raise UsageError(f"--count={options.count}: follow at least one sample")
    params, _ = opened.best()
    sampler = build_sampler(opened.config)
    animate(
        opened,
        params,
        sampler,
        count=options.count,
        frames=options.frames,
        seed=options.seed,
        label=options.label,
        prompt=options.prompt,
    )
    print(f"wrote {options.workdir}/paths.gif and paths.png: from noise to data by {sampler.method.name}")


def evaluate_command(options: argparse.Namespace) -> None:
    """Scores the model and its samples."""
    metrics, workdir = options.metrics.split(","), options.workdir
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UsageError(f"--metrics={options.metrics}: {unknown[0]!r} is none of {', '.join(METRICS)}")
    samples = [] if options.samples is None else [f"--config.eval.samples={options.samples}"]
    opened = run.Run.open(workdir, [*sampler_overrides(options), *samples, *options.overrides])
    _agree(opened.config)
    distances = [name for name in metrics if name in sample_quality.DISTANCES]
    # Before anything that takes long, because it may be refused.
    extractor = sample_quality.choose_extractor(opened, options.inception) if distances else None
    if any(name in likelihood.BOUNDS for name in metrics):
        entries = likelihood.evaluate(opened, metrics, split=options.split, seed=options.seed)
        report.add_likelihoods(workdir, options.split, entries | {"evaluate_seed": options.seed})
        print(report.likelihood_table(entries, options.split))
        _warn_of_failures(entries.get("nelbo_ode_failed", 0), "ODE solves")
    if extractor is not None:
        entries = sample_quality.compare_with_data(opened, distances, extractor, seed=options.seed)
        report.add_distances(workdir, entries | {"seed": options.seed})
        print(report.distance_table(entries))
        _warn_of_failures(entries["samples_failed"], "samples")
    if "time" in metrics:
        entries = sample_quality.time_sampling(opened, seed=options.seed)
        report.add_to_report(workdir, **entries)
        print(report.time_line(entries))
    print(f"wrote {workdir}/report.json")


def _warn_of_failures(failed: int, what: str) -> None:
    if failed:
        print(f"lsgm: warning: {failed} {what} ran out of steps", file=sys.stderr)


def study_command(options: argparse.Namespace) -> None:
    """Compares solvers."""
    overrides = [f"--config.sampling.{key}={value}" for key, value in ends(options).items()]
    opened = run.Run.open(options.workdir, [*overrides, *options.overrides])
    if options.count < 2:
        raise UsageError(f"--count={options.count}: give at least two samples")
    solvers, nfe, rtol = (
        options.solvers.split(","),
        numbers(int, options, "nfe"),
        numbers(float, options, "rtol"),
    )
    settings = solver_study.make_settings(opened, solvers, nfe, rtol, options.grid)
    folder = options.workdir / "study"
    rows = solver_study.study(opened, settings, options.count, options.seed, folder)
    table = solver_study.as_markdown(rows)
    with replacing(folder / "study.md") as partial:
        partial.write_text(table + "\n")
    solver_study.plot(rows, folder / "study.png")
    print(table)
    print(f"wrote {folder}/study.csv, study.md and study.png")


def params_command(options: argparse.Namespace) -> None:
    """Counts parameters and operations."""
    config = load_config(options.config, options.overrides)
    model = build_model(config)
    stage = bare_stages(config, model)[-1]
    print(json.dumps(describe(model, stage, config.data.batch_size)))


def convert_command(options: argparse.Namespace) -> None:
    """Makes a run of an official checkpoint."""
    config = load_config(options.config, options.overrides)
    averaged = options.weights == "average"
    converted = convert(config, options.checkpoint, options.workdir, averaged=averaged)
    counted = "".join(f", {name} {number}" for name, number in converted.counters.items())
    if converted.stage in ("vae", "first_stage"):
        print(f"converted the first stage{counted}: train the second with  lsgm train")
    else:
        weights = "moving average" if converted.averaged else "last step's weights"
        print(f"converted {options.checkpoint}{counted}; score network: {weights}")
    print(f"wrote {options.workdir}/config.json and checkpoints/{converted.stage}")


def data_command(options: argparse.Namespace) -> None:
    """Prepares a data set."""
    job = Job(
        kind=options.kind,
        source=options.source.expanduser(),
        data_dir=(options.data_dir or pathlib.Path(DATA_DIR)).expanduser(),
        name=options.name,
        size=options.size,
        skip_bad=options.skip_bad,
    )
    outcome = prepare(job)
    record = outcome.record
    counted = ", ".join(f"{count} {split}" for split, count in record["images"].items())
    print(f"{job.called} was prepared before: {counted}" if outcome.was_there else f"{job.called}: {counted}")
    for name, sha256 in record["sha256"].items():
        published = record["published"].get(name)
        print(f"  {name}: {f'{published}, as published' if published else f'sha256 {sha256}'}")
    if record["skipped"]:
        print(f"left out {len(record['skipped'])} damaged images: {', '.join(record['skipped'])}")
    if not outcome.was_there:
        print(f"wrote {job.folder}; train on it with  --config.data.source={job.called}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "train": train_command,
    "sample": sample_command,
    "evaluate": evaluate_command,
    "params": params_command,
    "convert": convert_command,
    "study": study_command,
    "inpaint": inpaint_command,
    "upscale": upscale_command,
    "interpolate": interpolate_command,
    "animate": animate_command,
    "data": data_command,
}
