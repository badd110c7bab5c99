"""A run: one config and one folder. What the commands do, without their printing."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lsgm_jax.arrays import Key, Latents, State
from lsgm_jax.conditioning.request import Asked, Conditions
from lsgm_jax.config.build_models import build_model
from lsgm_jax.config.build_running import build_sampler
from lsgm_jax.config.load import SAMPLING_SECTIONS, differences, override, read_config, save_config
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.data.pipeline import training_batches, whole_split
from lsgm_jax.errors import ConfigError, DataError
from lsgm_jax.evaluation import plots
from lsgm_jax.models.conditional import Condition
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.model import Model
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise, slerp
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.devices import OverDevices, data_mesh, replicated, shared_count
from lsgm_jax.training.loop import run_stage
from lsgm_jax.training.recipes.parts import Data, first_rows
from lsgm_jax.training.recipes.plan import initialiser, last_stage, make_stages
from lsgm_jax.training.sharding import Launcher
from lsgm_jax.training.stage import Course

RATES = ("learning_rate", "final")
# What a run may change when it is continued; everything else has to stay as it was.
MAY_CHANGE = (
    "data.data_dir",
    "train.log_every",
    "train.eval_every",
    "train.keep",
    "train.grad_accum_steps",
    "train.steps_per_call",
    "train.patience",
    "train.rollbacks",
    # Where and in what precision it is trained; a checkpoint holds whole arrays, in float32.
    "parallel.",
    "compute.",
    # Smaller ones are the remedy for a training that diverged.
    *(
        f"{section}.{rate}"
        for section in ("vae_stage", "joint_vae", "joint_prior", "optimiser")
        for rate in RATES
    ),
    *(f"{section}." for section in SAMPLING_SECTIONS),
)


def train(config: Config, workdir: pathlib.Path, *, trace: bool = False) -> None:
    """Trains all stages, or continues them where the folder's checkpoints end.

    Args:
        trace: whether a few steps of every stage are traced for TensorBoard's profiler.

    Raises:
        ConfigError: if the folder holds a run with another config, or cannot be written.
    """
    data, settings, model = build("data", config), build("train", config), build_model(config)
    check_other_sections(config)
    launcher = _launcher(config, data.batch_size, settings.grad_accum_steps)
    refuse_another_run(workdir, config)
    if _is_finished(workdir / "checkpoints" / last_stage(model), settings.steps):
        return
    params = _trained_before(config)
    conditions = Conditions.for_training(config, workdir)
    training, condition = data.open("train"), conditions.for_batches("train")
    stages = make_stages(config, model, Data(training, conditions.batch("validation")))
    batches = [training_batches(training, config.seed + index, condition) for index in range(len(stages))]
    claim(workdir, config)
    conditions.save(workdir)
    course = Course(train=settings, launcher=launcher, workdir=workdir, config=config.to_dict(), trace=trace)
    keys = jax.random.split(jax.random.key(config.seed), 2 * len(stages))
    for index, stage in enumerate(stages):
        k_init, k_stage = keys[index], keys[len(stages) + index]
        params = run_stage(stage, course, params, batches[index], k_init, k_stage)


def _launcher(config: Config, batch_size: int, grad_accum_steps: int) -> Launcher:
    """How the devices at hand share the work.

    Raises:
        ConfigError: if they cannot.
    """
    launcher = build("parallel", config)
    if batch_size % (grad_accum_steps * jax.device_count()):
        micro = f" in {grad_accum_steps} micro-batches" if grad_accum_steps > 1 else ""
        raise ConfigError(
            f"config.data.batch_size={batch_size} does not divide over {jax.device_count()} devices{micro}"
        )
    try:
        launcher.shardings(())
    except ValueError as error:
        raise ConfigError(f"config.parallel: {error}") from error
    return launcher


class Donor(NamedTuple):
    """How a model takes the first of its networks from another run.

    Attributes:
        key: of the config's section `train`, that names the other run's folder.
        stage: the first, which trains the network.
        describes: what of the configs has to agree.
        of_whole: what that stage would have left, of the parameters of the last.
    """

    key: str
    stage: str
    describes: tuple[str, ...]
    of_whole: Callable[[Params], Params]


IMAGES = ("data.image_shape=", "data.levels=", "autoencoder.")
DONORS = {
    "lsgm": Donor("vae_from", "vae", (*IMAGES, "likelihood."), lambda params: params["vae"]),
    "ldm": Donor("first_stage_from", "first_stage", IMAGES, lambda params: params),
}


def _trained_before(config: Config) -> Params | None:
    """What the first stage of this run finds: the network that another run has trained, or nothing.

    Raises:
        ConfigError: if that run is of other images, or of another network than `config`'s.
    """
    donor = DONORS.get(config.model)
    if donor is None or not config.train[donor.key]:
        return None
    workdir = pathlib.Path(config.train[donor.key])
    other = Run.open(workdir)
    if other.config.model != config.model:
        raise ConfigError(
            f"config.train.{donor.key}={str(workdir)!r} holds a run with model={other.config.model!r}, "
            f"not {config.model!r}"
        )
    changed = [text for text in differences(other.config, config) if text.startswith(donor.describes)]
    if changed:
        raise ConfigError(f"config.train.{donor.key}={str(workdir)!r} holds a run with {changed[0]}")
    if holds_checkpoints(workdir, last_stage(other.model)):
        return donor.of_whole(other.best()[0])
    return other.best(donor.stage)[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened for sampling and scoring."""

    workdir: pathlib.Path
    config: Config
    model: Model

    @classmethod
    def open(cls, workdir: pathlib.Path, overrides: list[str] | None = None) -> "Run":
        """Reads the config that `train` left in the folder.

        Args:
            overrides: "--config.a.b=value", of `SAMPLING_SECTIONS` alone.

        Raises:
            ConfigError: if there is none, or an override is off.
        """
        config = override(read_config(workdir / "config.json"), overrides or [])
        return cls(workdir, config, build_model(config))

    def best(self, stage: str | None = None, *, everywhere: bool = False) -> tuple[Params, int]:
        """Averaged parameters that validation chose, and their step.

        Args:
            stage: the name of an earlier stage, for what that one trained; None for the model's.
            everywhere: on every device of all processes, for `OverDevices`, instead of on the first one.
        """
        stage = stage or last_stage(self.model)
        init = initialiser(self.config, self.model, stage)
        with Checkpoints(self._checkpoints(stage), read_only=True) as checkpoints:
            like = jax.eval_shape(init, jax.random.key(0))
            if everywhere:
                whole = replicated(data_mesh())
                like = jax.tree.map(lambda leaf: leaf.update(sharding=whole), like)
            return checkpoints.restore_best(like)

    @property
    def conditions(self) -> Conditions:
        """What its samples can be asked to be like."""
        return Conditions.of_run(self.config, self.workdir)

    @property
    def has_vae_stage(self) -> bool:
        """Whether there is a VAE of a first stage to compare with."""
        return isinstance(self.model, LSGM) and self._checkpoints("vae").is_dir()

    def _checkpoints(self, stage: str) -> pathlib.Path:
        return self.workdir / "checkpoints" / stage


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples with what they cost; seconds are of the solve with everything compiled."""

    x: np.ndarray
    solution: Solution
    seconds: float
    compile_seconds: float


def sample(run: Run, params: Params, sampler: Sampler, count: int, seed: int, asked: Asked) -> Samples:
    """Draws `count` samples of the conditions that are asked for, in one compiled call over all devices."""
    model = run.model

    def decode(params: Params, given: tuple[State, Condition], key: Key) -> tuple[Array, Solution]:
        z_1, condition = given
        return model.decode(params, z_1, key, sampler, condition)

    k_noise, k_decode = jax.random.split(jax.random.key(seed))  # as in the models' `sample`
    noise = jax.jit(lambda key: draw_noise(sampler, model.process, key, (count, *model.latent_shape)))
    given = first_rows((noise(k_noise), asked(np.arange(count))), shared_count(count))
    start = time.monotonic()
    compiled = OverDevices(decode).compile(params, given, k_decode)
    begin = time.monotonic()
    x, solution = compiled(params, given, k_decode)
    seconds = time.monotonic() - begin
    drawn = solution._replace(z_0=solution.z_0[:count], success=solution.success[:count])
    return Samples(x[:count], drawn, seconds, begin - start)


def compile_draw(
    run: Run, params: Params, sampler: Sampler, count: int
) -> tuple[Callable[[Params, Key], tuple[Latents, Solution]], float]:
    """The compiled call that draws `count` samples on one device, and the seconds that compiling it took."""
    condition = run.conditions.ask(run.model, count)(np.arange(count))

    def draw(params: Params, key: Key) -> tuple[Latents, Solution]:
        return run.model.sample(params, key, count, sampler, condition)

    start = time.monotonic()
    compiled = jax.jit(draw).lower(params, jax.random.key(0)).compile()
    return compiled, time.monotonic() - start


def interpolate(
    run: Run,
    params: Params,
    sampler: Sampler,
    *,
    between: str,
    pairs: int,
    points: int,
    seed: int,
    asked: Asked,
) -> np.ndarray:
    """A picture whose rows go from one image to another along a great circle of noise.

    Args:
        between: "noise" that is drawn, or that of "test" images, found by the probability flow.
        pairs: rows.
        points: images per row, ends included.
        asked: the condition of each row, from one end to the other.

    Raises:
        ConfigError: for data that are no images.
        ValueError: for the solver of no ODE between test images.
    """
    model, key = run.model, jax.random.key(seed)
    if len(model.data_shape) != 3:
        raise ConfigError(
            f"samples of shape {model.data_shape} are no images, and have no picture in between"
        )
    k_ends, k_decode = jax.random.split(key)
    of_rows = asked(np.arange(pairs))
    along = lambda count: jax.tree.map(lambda values: np.repeat(values, count, axis=0), of_rows)
    if between == "test":
        x = jnp.asarray(whole_split(build("data", run.config), "test", limit=2 * pairs))
        encode = jax.jit(lambda params, batch: model.encode(params, batch, k_ends, sampler))
        ends = encode(params, Batch(x, along(2)))
    else:
        ends = draw_noise(sampler, model.process, k_ends, (2 * pairs, *model.latent_shape))
    first, last = (
        jax.tree.map(lambda z, half=half: jnp.repeat(z[half], points, axis=0), ends)
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    share = jnp.tile(jnp.linspace(0.0, 1.0, points), pairs)
    decode = jax.jit(lambda params, z_1, given: model.decode(params, z_1, k_decode, sampler, given)[0])
    x = decode(params, slerp(first, last, share), along(points))
    return plots.grid(np.asarray(x), points, model.labels)


def compare(run: Run, x: np.ndarray, seed: int) -> np.ndarray:
    """One picture: the samples `x` beside those of the first stage and the test split, where there are any."""
    panels = {}
    if run.has_vae_stage:
        assert isinstance(run.model, LSGM)
        vae_params, _ = run.best("vae")
        baseline = jax.jit(run.model.vae.sample, static_argnums=2)(vae_params, jax.random.key(seed), len(x))
        panels["VAE, Gaussian prior"] = np.asarray(baseline)
    panels[run.config.model.upper()] = x
    with contextlib.suppress(DataError):  # a converted run may be sampled without its data
        panels["test split"] = whole_split(build("data", run.config), "test", limit=len(x))
    drawn = {title: plots.picture(panel, run.model.labels) for title, panel in panels.items()}
    return plots.side_by_side(drawn)


def holds_checkpoints(workdir: pathlib.Path, stage: str = "*") -> bool:
    """Whether anything has been trained or converted there, of one stage or of any."""
    return any((workdir / "checkpoints").glob(f"{stage}/[0-9]*"))


def _is_finished(folder: pathlib.Path, steps: int) -> bool:
    if not folder.is_dir():
        return False
    with Checkpoints(folder) as checkpoints:  # to write, which clears away what an interrupted save has left
        return checkpoints.latest_step == steps


def check_other_sections(config: Config) -> None:
    """Builds what other commands use: a mistake in them should show before hours of training.

    Raises:
        ConfigError: for a value that is refused.
    """
    build_sampler(config)
    for section in ("divergence", "eval"):
        build(section, config)


def refuse_another_run(workdir: pathlib.Path, config: Config) -> None:
    """Where checkpoints exist already, only what `MAY_CHANGE` lists may differ from their config.

    Raises:
        ConfigError: if something else does.
    """
    if (workdir / "config.json").exists() and holds_checkpoints(workdir):
        changed = differences(read_config(workdir / "config.json"), config)
        changed = [text for text in changed if not text.startswith(MAY_CHANGE)]
        if changed:
            raise ConfigError(
                f"{workdir} holds a run with {changed[0]}: use the same config, or another --workdir"
            )


def claim(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json.

    Raises:
        ConfigError: if the folder cannot be written.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {workdir} ({error.strerror}): choose another --workdir"
        ) from error
