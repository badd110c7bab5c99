"""Trains all stages of a config in a folder, or resumes them."""

import pathlib
import sys

import jax

from lsgm_jax.arrays import Params
from lsgm_jax.conditioning.request import Conditions
from lsgm_jax.config.factory import Experiment, experiment
from lsgm_jax.config.load import SAMPLING_SECTIONS, as_config, differences, read_config, save_config
from lsgm_jax.config.models import MODELS, OPTIMISER
from lsgm_jax.config.registry import Config
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.data.survey import read_survey, survey
from lsgm_jax.errors import ConfigError
from lsgm_jax.files import is_first
from lsgm_jax.locks import Lock, locked
from lsgm_jax.sampling.run import CONFIG, Run, checkpoints_of, holds_checkpoints
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.checkpoint_record import saved_config
from lsgm_jax.training.loop import run_stage
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.stage import Course

OPTIMISERS = {
    name for kind in MODELS.values() for name, section in kind.sections.items() if section is OPTIMISER
}
# The keys that may change when a run is resumed; all others have to be as they were.
MAY_CHANGE = (
    "data.data_dir",
    "train.steps",  # of the last stage; not to fewer than it has, see `_is_finished`
    "train.log_every",
    "train.eval_every",
    "train.keep",
    "train.grad_accum_steps",
    "train.steps_per_call",
    "train.patience",
    "train.rollbacks",
    # Devices and precision: a checkpoint holds unsharded arrays, in float32.
    "parallel.",
    "compute.",
    # Smaller ones are the remedy for a training that diverged.
    *(f"{section}.{rate}" for section in sorted(OPTIMISERS) for rate in ("learning_rate", "final")),
    *(f"{section}." for section in SAMPLING_SECTIONS),
)

ANOTHER_WORKDIR = "choose another --workdir"


def train(config: Config, workdir: pathlib.Path, *, trace: bool = False) -> bool:
    """Trains all stages, or resumes them from the last checkpoints of the folder.

    Args:
        trace: whether a few steps of every stage are traced for TensorBoard's profiler.

    Returns:
        Whether there was anything to train; False for a run that has finished.

    Raises:
        ConfigError: if the folder holds a run with another config.
        LockedError: if another process is writing to the folder, or it cannot be written.
    """
    planned = experiment(config)
    check_devices(planned)
    with locked(workdir.expanduser(), "trained", ANOTHER_WORKDIR) as lock:
        _refuse_another_run(lock.folder, config)
        return _train(planned, config, lock, trace=trace)


def _train(planned: Experiment, config: Config, lock: Lock, *, trace: bool) -> bool:
    recipe, data, model, workdir = planned.training, planned.data, planned.model, lock.folder
    if _is_finished(checkpoints_of(workdir, model.stages[-1]), recipe.train.steps):
        claim(workdir, config)
        return False
    params = _donated(planned, config)
    surveyed = survey(data, read_survey(workdir) if holds_checkpoints(workdir) else None)
    conditions = Conditions.for_training(planned.conditioning, data, workdir)
    training, condition = data.open("train"), conditions.for_batches("train")
    stages = recipe.stages(Data(training, conditions.batch("validation"), data.batch_size))
    batches = [training_batches(training, planned.seed + index, condition) for index in range(len(stages))]
    claim(workdir, config)
    surveyed.save(workdir)
    if is_first():
        print("\n".join(surveyed.lines()), file=sys.stderr)
    conditions.save(workdir)
    course = Course(
        train=recipe.train, launcher=planned.parallel, lock=lock, config=config.to_dict(), trace=trace
    )
    keys = jax.random.split(jax.random.key(planned.seed), 2 * len(stages))
    for index, stage in enumerate(stages):
        k_init, k_stage = keys[index], keys[len(stages) + index]
        params = run_stage(stage, course, params, batches[index], k_init, k_stage)
    return True


def check_devices(planned: Experiment) -> None:
    """Checks that the devices of the launcher can share a batch, and the state.

    Raises:
        ConfigError: if they cannot.
    """
    try:
        devices = planned.parallel.mesh.size
    except ValueError as error:
        raise ConfigError(f"config.parallel: {error}") from error
    batch_size, accumulated = planned.data.batch_size, planned.training.train.grad_accum_steps
    if batch_size % (accumulated * devices):
        micro = f" in {accumulated} micro-batches" if accumulated > 1 else ""
        raise ConfigError(
            f"config.data.batch_size={batch_size} does not divide over {devices} devices{micro}"
        )


def _donated(planned: Experiment, config: Config) -> Params | None:
    """The autoencoder that another run has trained, in place of a first stage; None if there is none.

    Raises:
        ConfigError: if that run is of other images, or of another network than the config's.
    """
    donor = planned.training.donor
    if donor is None:
        return None
    other = Run.open(pathlib.Path(donor.folder))
    if other.experiment.name != planned.name:
        raise ConfigError(
            f"config.train.{donor.key}={donor.folder!r} holds a run with model={other.experiment.name!r}, "
            f"not {planned.name!r}"
        )
    changed = [text for text in differences(other.config, config) if text.startswith(donor.describes)]
    if changed:
        raise ConfigError(f"config.train.{donor.key}={donor.folder!r} holds a run with {changed[0]}")
    if holds_checkpoints(other.workdir, other.model.stages[-1]):
        return donor.of_whole(other.best()[0])
    return other.best(donor.stage)[0]


def _is_finished(folder: pathlib.Path, steps: int) -> bool:
    """Returns whether the last stage has all its steps.

    Raises:
        ConfigError: if it has more.
    """
    if not folder.is_dir():
        return False
    with Checkpoints(folder) as checkpoints:  # to write, which clears away what an interrupted save has left
        done = checkpoints.latest_step or 0
    if done > steps:
        raise ConfigError(
            f"config.train.steps={steps}: {folder} has {done} steps already; give at least these"
        )
    return done == steps


def _refuse_another_run(workdir: pathlib.Path, config: Config) -> None:
    """Refuses a config that differs from the one of the folder in more than `MAY_CHANGE` lists."""
    before = _config_of(workdir)
    changed = [] if before is None else differences(before, config)
    changed = [text for text in changed if not text.startswith(MAY_CHANGE)]
    if changed:
        raise ConfigError(
            f"{workdir} holds a run with {changed[0]}: use the same config, or another --workdir"
        )


def _config_of(workdir: pathlib.Path) -> Config | None:
    """Returns the config of the run in a folder: of its file or, if that is lost or damaged, of its checkpoints."""
    path = workdir / CONFIG
    if not holds_checkpoints(workdir) and not path.exists():
        return None
    try:
        return read_config(path)
    except ConfigError as error:
        records = (saved_config(folder) for folder in sorted(checkpoints_of(workdir, "").glob("*")))
        found = next((record for record in records if record is not None), None)
        if found is None and holds_checkpoints(workdir):
            raise ConfigError(
                f"{workdir} has lost its {CONFIG} ({error}): choose another --workdir"
            ) from error
        return None if found is None else as_config(found, str(path))


def claim(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json."""
    workdir.mkdir(parents=True, exist_ok=True)
    save_config(workdir / CONFIG, config)
