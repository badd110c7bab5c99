"""A run: one config and one folder. What the commands do, without their printing."""

import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Key, Latents
from lsgm_jax.build import build, build_model, build_sampler
from lsgm_jax.config import SAMPLING_SECTIONS, differences, override, read_config, save_config
from lsgm_jax.data.pipeline import training_batches, whole_split
from lsgm_jax.data.sources import DataError
from lsgm_jax.evaluation import pictures
from lsgm_jax.evaluation.nelbo import (
    Estimate,
    PerImage,
    bits_per_dimension,
    estimate,
    importance_bound,
    score_images,
)
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Params
from lsgm_jax.models.sgm import SGM
from lsgm_jax.objectives.times import Stratum
from lsgm_jax.schema import Config, ConfigError
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.sampler import Sampler, Solution, draw_noise, slerp
from lsgm_jax.stages import Images, last_stage, make_stages, model_terms, vae_terms
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.loop import run_stage

Scores = dict[str, np.ndarray]
RATES = ("learning_rate", "final")
# What a run may change when it is continued; everything else has to stay as it was.
MAY_CHANGE = (
    "data.data_dir",
    "train.log_every",
    "train.eval_every",
    # Smaller ones are the remedy for a training that diverged.
    *(
        f"{section}.{rate}"
        for section in ("vae_stage", "joint_vae", "joint_prior", "optimiser")
        for rate in RATES
    ),
    *(f"{section}." for section in SAMPLING_SECTIONS),
)


def train(config: Config, workdir: pathlib.Path) -> None:
    """Trains all stages, or continues them where the folder's checkpoints end.

    Raises:
        ConfigError: if the folder holds a run with another config, or cannot be written.
    """
    data, settings, model = build("data", config), build("train", config), build_model(config)
    check_other_sections(config)
    if data.batch_size % jax.device_count():
        raise ConfigError(
            f"config.data.batch_size={data.batch_size} does not divide over {jax.device_count()} devices"
        )
    refuse_another_run(workdir, config)
    if _is_finished(workdir / "checkpoints" / last_stage(model), settings.steps):
        return
    params = _vae_of(pathlib.Path(settings.vae_from), config) if getattr(settings, "vae_from", "") else None
    training = data.open("train")
    stages = make_stages(config, model, Images(training, whole_split(data, "validation")))
    batches = [training_batches(training, config.seed + index) for index in range(len(stages))]
    claim(workdir, config)
    keys = jax.random.split(jax.random.key(config.seed), 2 * len(stages))
    for index, stage in enumerate(stages):
        k_init, k_stage = keys[index], keys[len(stages) + index]
        fresh = jax.jit(stage.init)(k_init, params)
        params = run_stage(stage, settings, fresh, batches[index], k_stage, workdir, config.to_dict())


def _vae_of(workdir: pathlib.Path, config: Config) -> Params:
    """The VAE that another run has trained, in its last stage as far as there is one.

    Raises:
        ConfigError: if that run is of other images, or of another autoencoder than `config`'s.
    """
    other = Run.open(workdir)
    changed = differences(other.config, config)
    changed = [text for text in changed if text.startswith(("autoencoder.", "likelihood."))]
    if changed:
        raise ConfigError(f"config.train.vae_from={str(workdir)!r} holds a run with {changed[0]}")
    if holds_checkpoints(workdir, last_stage(other.model)):
        return other.best()[0]["vae"]
    return other.best("vae")[0]


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened for sampling and scoring."""

    workdir: pathlib.Path
    config: Config
    model: LSGM | SGM

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

    def best(self, stage: str | None = None) -> tuple[Params, int]:
        """Averaged parameters that validation chose, and their step.

        Args:
            stage: "vae" for those of an LSGM's first stage; None for the model's.
        """
        init = self.model.vae.init if stage == "vae" and isinstance(self.model, LSGM) else self.model.init
        with Checkpoints(self._checkpoints(stage or last_stage(self.model)), read_only=True) as checkpoints:
            return checkpoints.restore_best(jax.eval_shape(init, jax.random.key(0)))

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


def sample(run: Run, params: Params, sampler: Sampler, count: int, seed: int) -> Samples:
    """Draws `count` samples in one compiled call."""

    def draw(params: Params, key: Key) -> tuple[Latents, Solution]:
        return run.model.sample(params, key, count, sampler)

    key = jax.random.key(seed)
    start = time.monotonic()
    compiled = jax.jit(draw).lower(params, key).compile()
    compiled_at = time.monotonic()
    x, solution = jax.block_until_ready(compiled(params, key))
    done = time.monotonic()
    return Samples(np.asarray(x), solution, done - compiled_at, compiled_at - start)


def interpolate(
    run: Run, params: Params, sampler: Sampler, *, between: str, pairs: int, points: int, seed: int
) -> np.ndarray:
    """A picture whose rows go from one image to another along a great circle of noise.

    Args:
        between: "noise" that is drawn, or that of "test" images, found by the probability flow.
        pairs: rows.
        points: images per row, ends included.

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
    if between == "test":
        x = jnp.asarray(whole_split(build("data", run.config), "test", limit=2 * pairs))
        ends = jax.jit(lambda params, x: model.encode(params, Batch(x), k_ends, sampler))(params, x)
    else:
        ends = draw_noise(sampler, model.process, k_ends, (2 * pairs, *model.latent_shape))
    first, last = (
        jax.tree.map(lambda z, half=half: jnp.repeat(z[half], points, axis=0), ends)
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    share = jnp.tile(jnp.linspace(0.0, 1.0, points), pairs)
    decode = jax.jit(lambda params, z_1: model.decode(params, z_1, k_decode, sampler)[0])
    return pictures.grid(np.asarray(decode(params, slerp(first, last, share))), columns=points)


def compare(run: Run, x: np.ndarray, seed: int) -> np.ndarray:
    """One picture: the samples `x` beside those of the first stage and the test split, where there are any."""
    panels = {}
    if run.has_vae_stage:
        assert isinstance(run.model, LSGM)
        vae_params, _ = run.best("vae")
        baseline = jax.jit(run.model.vae.sample, static_argnums=2)(vae_params, jax.random.key(seed), len(x))
        panels["VAE, Normal prior"] = np.asarray(baseline)
    panels[run.config.model.upper()] = x
    with contextlib.suppress(DataError):  # a converted run may be sampled without its data
        panels["test split"] = whole_split(build("data", run.config), "test", limit=len(x))
    return pictures.side_by_side({title: pictures.picture(panel) for title, panel in panels.items()})


def evaluate(run: Run, seed: int, metrics: Collection[str]) -> dict[str, Any]:
    """Scores the model on the test split, and beside an LSGM the VAE of its first stage.

    Args:
        metrics: "ode" integrates the probability flow for log p(z_0), "iw" does so for several latents per image and
            gives the importance-weighted bound, which is tighter. The NELBO comes with either.

    Returns:
        Entries of report.json: terms in nats per sample and, ending in `_bpd`, in bits per dimension, each with the
        standard error of its mean over samples.

    Raises:
        ConfigError: if a metric needs an ODE and the solver integrates none.
    """
    settings, sampler = build("eval", run.config), build_sampler(run.config)
    if {"ode", "iw"} & set(metrics) and sampler.method.dynamics != "ode":
        raise ConfigError(
            f"solver {sampler.method.name!r} integrates no ODE, which the metrics ode and iw need: "
            "use one such as Tsit5, or leave them out"
        )
    x, key = whole_split(build("data", run.config), "test"), jax.random.key(seed)
    params, step = run.best()

    def score(label: str, terms: PerImage, params: Params, draws: int = settings.draws) -> Scores:
        batch_size = settings.batch_size
        return score_images(jax.jit(terms), params, x, key, draws=draws, batch_size=batch_size, label=label)

    report: dict[str, Any] = {"test_images": len(x), "chosen_step": step, **_bounds(run, params, score)}
    terms, name = _ode_terms(run.model, sampler, build("divergence", run.config)), run.config.model
    if "iw" in metrics:
        draws, size = settings.importance_draws, settings.batch_size
        bound = importance_bound(
            jax.jit(terms), params, x, key, draws=draws, batch_size=size, label="importance"
        )
        report |= _entries(f"nelbo_{name}_iw", estimate(bound)) | {"nelbo_iw_draws": draws}
    if "ode" in metrics:
        density = score("ODE", terms, params, draws=1)
        report |= _entries(f"nelbo_{name}_ode", estimate(density["nelbo"]))
        report["nelbo_ode_nfe"] = int(density["nfe"].max())
        report["nelbo_ode_products"] = int(density["products"].max())
        report["nelbo_ode_failed"] = int((density["success"] < 1).sum())
    return report


def _bounds(run: Run, params: Params, score: Callable[..., Scores]) -> dict[str, Any]:
    """The model's bound by terms; for an LSGM also that of its VAE, alone and as the first stage left it."""
    model, name = run.model, run.config.model
    scores = score(name.upper(), model_terms(model), params)
    report: dict[str, Any] = _by_terms(name, scores, model.pixel_values)
    if isinstance(model, LSGM):
        normal = score("LSGM's VAE, Normal prior", vae_terms(model), params["vae"])
        report |= _entries("nelbo_lsgm_vae_normal_prior", estimate(normal["nelbo"]))
        if run.has_vae_stage:
            vae_params, report["chosen_step_vae"] = run.best("vae")
            vae = score("VAE", vae_terms(model), vae_params)
            report |= _by_terms("vae", vae, model.pixel_values)
            report |= _entries("improvement", estimate(vae["nelbo"] - scores["nelbo"]))
    return report


def _by_terms(name: str, scores: Scores, pixel_values: int) -> dict[str, float]:
    """In nats, and in bits per dimension if the data have grey levels."""
    entries = {}
    for term in ("nelbo", "reconstruction", "entropy", "cross_entropy"):
        entries |= _entries(f"{term}_{name}", estimate(scores[term]))
        if pixel_values:
            bits = bits_per_dimension(scores[term], pixel_values)
            entries |= _entries(f"{term}_{name}_bpd", estimate(bits))
    return entries


def _entries(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.mean, f"{name}_stderr": value.stderr}


def _ode_terms(model: LSGM | SGM, sampler: Sampler, divergence: Divergence) -> PerImage:
    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> dict[str, jax.Array]:
        bound = model.ode_bound(params, batch, key, sampler, divergence)
        return {name: jnp.broadcast_to(value, len(batch.x)) for name, value in bound._asdict().items()}

    return terms


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
