"""What each command of `lsgm` calls and prints.

Loaded once the command line has been parsed: usage errors should not wait for JAX.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from lsgm_jax.cli.metrics import compute_metrics
from lsgm_jax.cli.parser import METRICS, ends, numbers, real, sampler_overrides, whole
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import as_plain, load_config
from lsgm_jax.data.names import shortened
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.sources import DATA_DIR
from lsgm_jax.distributed import launch
from lsgm_jax.errors import UsageError
from lsgm_jax.evaluation import plots, report, sample_quality, solver_study, study_rows
from lsgm_jax.evaluation.generators import DISTANCES
from lsgm_jax.evaluation.model_size import describe
from lsgm_jax.files import replacing
from lsgm_jax.interop.convert import convert
from lsgm_jax.sampling import inpaint
from lsgm_jax.sampling.archive import write_samples
from lsgm_jax.sampling.failures import Failures, are_finite
from lsgm_jax.sampling.interpolate import interpolate
from lsgm_jax.sampling.run import Run
from lsgm_jax.sampling.sample import compare, sample
from lsgm_jax.sampling.trajectories import animate
from lsgm_jax.training.logs import CompileClock, warn
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.train import train


def _agree(config: Any) -> None:
    """Several processes have to run the same config."""
    launch.agree("config", json.dumps(as_plain(config), sort_keys=True, allow_nan=False))


def _open(options: argparse.Namespace, further: Sequence[str] = ()) -> Run:
    """Opens the run with the options of its sampler, and warns of a grid that ruins the solver."""
    opened = Run.open(options.workdir, [*sampler_overrides(options), *further, *options.overrides])
    caution = opened.experiment.sampler.caution(opened.model.prior.process)
    if caution is not None:
        warn(caution)
    return opened


def train_command(options: argparse.Namespace) -> None:
    """Trains, or resumes training."""
    start, compiling = time.monotonic(), CompileClock()
    config = load_config(options.config, options.overrides)
    _agree(config)
    trained = train(config, options.workdir, trace=options.profile)
    seconds = time.monotonic() - start
    _, step = Run.open(options.workdir).best()
    if not trained:
        print(
            f"{options.workdir} has finished already, all {config.train.steps} steps; validation chose step {step}. "
            "A larger train.steps trains for longer"
        )
        return
    print(
        f"trained in {seconds:.0f} s, {compiling.seconds:.0f} s of it compiling; validation chose step {step}"
    )
    print(f"wrote {options.workdir}/checkpoints, metrics.csv and tensorboard")
    if options.profile:
        print(f"traced a few steps into {options.workdir}/profile: look at them with  tensorboard --logdir")


def sample_command(options: argparse.Namespace) -> None:
    """Draws samples."""
    opened = _open(options)
    _agree(opened.config)
    solver = opened.experiment.sampler.method.name
    request = opened.conditions.request(options.count, label=options.label, prompt=options.prompt)
    params, step = opened.best(everywhere=True)
    batches = sample(opened, params, options.count, options.seed, request)
    drawn = write_samples(batches, options.workdir / "samples.npz")
    plots.save_png(options.workdir / "samples.png", plots.picture(drawn.shown, opened.model.labels))
    plots.save_png(options.workdir / "comparison.png", compare(opened, drawn.shown, options.seed))
    report.add_to_report(
        options.workdir,
        nfe=drawn.nfe,
        nfe_mean=drawn.nfe_mean,
        sample_seconds=drawn.seconds,
        sample_compile_seconds=drawn.compile_seconds,
        sample_solver=solver,
        sample_count=options.count,
        sample_failed=drawn.failures.total,
        sample_seed=options.seed,
    )
    print(
        f"{options.count} samples of step {step} by {solver}: NFE {drawn.nfe} "
        f"(mean per sample {drawn.nfe_mean:.1f}), "
        f"{drawn.seconds:.2f} s after {drawn.compile_seconds:.1f} s of compilation"
    )
    _say_classes(opened, options.label)
    print(f"wrote {options.workdir}/samples.png, comparison.png and samples.npz")
    _require_all(drawn.failures)


def _say_classes(opened: Run, label: str | None) -> None:
    """A number may be the name of a class or its index: say which class was drawn."""
    if drawn := opened.conditions.drawn(label):
        print(drawn)


def inpaint_command(options: argparse.Namespace) -> None:
    """Fills in the hole of an image."""
    opened = _open(options)
    x = inpaint.read_picture(opened, options.image, "an image for this model")
    mask = inpaint.read_mask(opened, options.mask)
    params, _ = opened.best()
    copies = lambda image: np.repeat(image[None], options.count, axis=0)
    filled, success = inpaint.inpaint(opened, params, copies(x), copies(mask), jax.random.key(options.seed))
    _save_restored(options, "inpainted.png", [x, (1.0 - mask) * x, *filled], success)


def upscale_command(options: argparse.Namespace) -> None:
    """Makes a small image large."""
    opened = _open(options)
    small = inpaint.read_small(opened, options.image)
    params, _ = opened.best()
    copies = np.repeat(small[None], options.count, axis=0)
    large, success = inpaint.upscale(opened, params, copies, jax.random.key(options.seed))
    factor = large.shape[1] // len(small)
    blocks = small.repeat(factor, axis=0).repeat(factor, axis=1)
    _save_restored(options, "upscaled.png", [blocks, *large], success)


def _save_restored(options: argparse.Namespace, name: str, panels: list[Any], success: Any) -> None:
    """Saves the input and the results in a row, and each result in a file; results that failed are skipped."""
    given, results = panels[: -len(success)], np.stack(panels[-len(success) :])
    failures, good = Failures.among(success, results), np.asarray(success) & are_finite(results)
    if not good.any():
        raise failures.error()
    results = results[good]
    path = options.out or options.workdir / name
    panels = [*given, *results]
    plots.save_png(path, plots.grid(np.stack(panels), columns=len(panels)))
    files = [path.with_stem(f"{path.stem}_{number}") for number in range(len(results))]
    for file, result in zip(files, results, strict=True):
        plots.save_png(file, plots.to_pixels(result))
    print(f"wrote {path} and {files[0]}{f' to {files[-1].name}' if len(files) > 1 else ''}")
    _require_all(failures)


def _require_all(failures: Failures) -> None:
    """Raises an error if samples have failed; what is written is of the others."""
    if failures.total:
        raise failures.error(consequence=" and skipped")


def interpolate_command(options: argparse.Namespace) -> None:
    """Draws images between samples, or between test images."""
    opened = _open(options)
    request = opened.conditions.request(options.pairs, label=options.label, prompt=options.prompt)
    params, _ = opened.best()
    try:
        picture = interpolate(
            opened,
            params,
            between=options.between,
            pairs=options.pairs,
            points=options.points,
            seed=options.seed,
            request=request,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    plots.save_png(options.workdir / "interpolation.png", picture)
    _say_classes(opened, options.label)
    what = {"noise": "draws of noise", "test": "test images"}[options.between]
    print(f"wrote {options.workdir}/interpolation.png: {options.pairs} rows between {what}")


def animate_command(options: argparse.Namespace) -> None:
    """Draws sampling trajectories."""
    opened = _open(options)
    params, _ = opened.best()
    animate(
        opened,
        params,
        count=options.count,
        frames=options.frames,
        seed=options.seed,
        label=options.label,
        prompt=options.prompt,
    )
    _say_classes(opened, options.label)
    solver = opened.experiment.sampler.method.name
    print(f"wrote {options.workdir}/paths.gif and paths.png: from noise to data by {solver}")


def evaluate_command(options: argparse.Namespace) -> None:
    """Evaluates the likelihood of the model and the quality of its samples."""
    metrics = options.metrics.split(",")
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise UsageError(f"--metrics={options.metrics}: {unknown[0]!r} is none of {', '.join(METRICS)}")
    samples = [] if options.samples is None else [f"--config.eval.samples={options.samples}"]
    opened = _open(options, samples)
    _agree(opened.config)
    distances = [name for name in metrics if name in DISTANCES]
    # Before anything that takes long, because it may be refused.
    extractor = sample_quality.choose_extractor(opened, options.inception) if distances else None
    compute_metrics(opened, options, metrics, extractor)
    print(f"wrote {options.workdir}/report.json")


def study_command(options: argparse.Namespace) -> None:
    """Compares solvers."""
    overrides = [f"--config.sampling.{key}={value}" for key, value in ends(options).items()]
    opened = Run.open(options.workdir, [*overrides, *options.overrides])
    nfe, rtol = numbers(whole(1), options, "nfe"), numbers(real, options, "rtol")
    settings = solver_study.make_settings(opened, options.solvers.split(","), nfe, rtol, options.grid)
    folder = options.workdir / "study"
    rows = solver_study.study(opened, settings, options.count, options.seed, folder)
    table = study_rows.as_markdown(rows)
    with replacing(folder / "study.md") as partial:
        partial.write_text(table + "\n")
    study_rows.plot(rows, folder / "study.png")
    print(table)
    print(f"wrote {folder}/study.csv, study.md and study.png")


def params_command(options: argparse.Namespace) -> None:
    """Counts parameters and operations."""
    planned = experiment(load_config(options.config, options.overrides))
    stage = planned.training.stages(Data.without(planned.model.data_shape))[-1]
    print(json.dumps(describe(planned.model, stage, planned.data.batch_size), allow_nan=False))


def convert_command(options: argparse.Namespace) -> None:
    """Makes a run of an official checkpoint."""
    config = load_config(options.config, options.overrides)
    converted = convert(config, options.checkpoint, options.workdir, ema=options.weights == "ema")
    counted = "".join(f", {name} {number}" for name, number in converted.counters.items())
    if converted.stage in ("vae", "first_stage"):
        print(f"converted the first stage{counted}: train the second with  lsgm train")
    else:
        weights = "EMA" if converted.ema else "weights of the last step"
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
    if record.get("classes"):
        print(f"  {len(record['classes'])} classes: {shortened(record['classes'])}")
    if record.get("other_files"):
        print(f"  skipped {record['other_files']}")
    for repeated in record.get("repeated", ()):
        print(f"  {repeated}")
    if record["skipped"]:
        print(f"skipped {len(record['skipped'])} damaged images: {', '.join(record['skipped'])}")
    if not outcome.was_there:
        where = f" --config.data.data_dir={job.data_dir}" if options.data_dir else ""
        print(f"wrote {job.folder}; train on it with  --config.data.source={job.called}{where}")


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
