"""A run: one config and one folder. What the commands do, without their printing."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Images, Key
from lsgm_jax.build import Config, ConfigError, build, build_lsgm, build_optimiser
from lsgm_jax.config import differences, read_config, save_config
from lsgm_jax.data.pipeline import Split, training_batches, whole_split
from lsgm_jax.evaluation import images
from lsgm_jax.evaluation.nelbo import Estimate, PerImage, bits_per_dimension, estimate, score_images
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.network import Params
from lsgm_jax.models.vae import Batch, Bound
from lsgm_jax.objectives.kl import annealed
from lsgm_jax.objectives.times import Stratum
from lsgm_jax.solvers.ode import ODESolver, Solution, log_density
from lsgm_jax.training.checkpoint import Checkpoints
from lsgm_jax.training.loop import Stage, run_stage

PREVIEW = 64  # images in TensorBoard's pictures
VALIDATION_DRAWS = 4
# What a run may change when it is continued; everything else has to stay as it was.
MAY_CHANGE = ("data.data_dir", "train.log_every", "train.eval_every", "solver.", "eval.")


def train(config: Config, workdir: pathlib.Path) -> None:
    """Trains both stages, or continues them where the folder's checkpoints end.

    Raises:
        ConfigError: if the folder holds a run with another config, or cannot be written.
    """
    spec, settings, model = build("data", config), build("train", config), build_lsgm(config)
    for section in ("solver", "eval"):  # used by other commands, but a mistake in them should show now
        build(section, config)
    if spec.batch_size % jax.device_count():
        raise ConfigError(
            f"config.data.batch_size={spec.batch_size} does not divide over {jax.device_count()} devices"
        )
    training = Split(spec, "train")
    vae_batches, joint_batches = (training_batches(training, config.seed + offset) for offset in (0, 1))
    validation = whole_split(spec, "validation")
    _claim(workdir, config)
    k_vae, k_prior, k_vae_stage, k_joint_stage = jax.random.split(jax.random.key(config.seed), 4)
    as_dict = config.to_dict()

    vae_stage = Stage(
        name="vae",
        loss=model.vae.loss,
        optimiser=build_optimiser(config, "vae"),
        kl_coefficient=functools.partial(annealed, start=settings.vae_kl_start, ramp=settings.vae_kl_steps),
        steps=settings.vae_steps,
        validate=_validator(jax.jit(_vae_terms(model)), validation, spec.batch_size),
        draw=_drawer(lambda params, key: model.vae.sample(params, key, PREVIEW)),
    )
    fresh = jax.jit(model.vae.init)(k_vae)
    vae = run_stage(vae_stage, settings, fresh, vae_batches, k_vae_stage, workdir, as_dict)

    # A preview needs to look right, not to be exact: twenty evaluations instead of a hundred.
    preview = ODESolver(name="Heun", steps=10, t_min=1e-3)
    joint_stage = Stage(
        name="joint",
        loss=model.loss,
        optimiser=build_optimiser(config, "joint"),
        kl_coefficient=functools.partial(annealed, start=settings.kl_start, ramp=settings.kl_steps),
        steps=settings.steps,
        validate=_validator(jax.jit(_lsgm_terms(model)), validation, spec.batch_size),
        draw=_drawer(lambda params, key: model.sample(params, key, PREVIEW, preview)[0]),
    )
    params = {"vae": vae} | jax.jit(model.init_prior)(k_prior)
    run_stage(joint_stage, settings, params, joint_batches, k_joint_stage, workdir, as_dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run, opened for sampling and scoring."""

    workdir: pathlib.Path
    config: Config
    model: LSGM

    @classmethod
    def open(cls, workdir: pathlib.Path) -> "Run":
        """Reads the config that `train` left in the folder.

        Raises:
            ConfigError: if there is none.
        """
        config = read_config(workdir / "config.json")
        return cls(workdir, config, build_lsgm(config))

    def best(self, stage: str) -> tuple[Params, int]:
        """Averaged parameters of the stage "vae" or "joint" that validation chose, and their step."""
        init = {"vae": self.model.vae.init, "joint": self.model.init}[stage]
        with Checkpoints(self.workdir / "checkpoints" / stage, read_only=True) as checkpoints:
            return checkpoints.restore_best(jax.eval_shape(init, jax.random.key(0)))


@dataclasses.dataclass(frozen=True)
class Samples:
    """Images with what they cost; seconds are of the solve with everything compiled."""

    x: np.ndarray
    solution: Solution
    seconds: float
    compile_seconds: float


def sample(run: Run, params: Params, solver: ODESolver, count: int, seed: int) -> Samples:
    """Draws `count` images by the probability-flow ODE in one compiled call."""

    def draw(params: Params, key: Key) -> tuple[Images, Solution]:
        return run.model.sample(params, key, count, solver)

    key = jax.random.key(seed)
    start = time.monotonic()
    compiled = jax.jit(draw).lower(params, key).compile()
    compiled_at = time.monotonic()
    x, solution = jax.block_until_ready(compiled(params, key))
    done = time.monotonic()
    return Samples(np.asarray(x), solution, done - compiled_at, compiled_at - start)


def compare(run: Run, x: np.ndarray, seed: int) -> np.ndarray:
    """One picture: the VAE's Normal prior, the LSGM samples `x`, and test images."""
    vae_params, _ = run.best("vae")
    baseline = jax.jit(run.model.vae.sample, static_argnums=2)(vae_params, jax.random.key(seed), len(x))
    real = whole_split(build("data", run.config), "test", limit=len(x))
    panels = {"VAE, Normal prior": np.asarray(baseline), "LSGM": x, "test images": real}
    return images.side_by_side({title: images.grid(panel) for title, panel in panels.items()})


def evaluate(run: Run, seed: int, *, ode: bool) -> dict[str, Any]:
    """Scores LSGM and first-stage VAE on the test split.

    Args:
        ode: also integrate the probability-flow ODE for log p(z_0).

    Returns:
        Entries of report.json: terms in nats per image and, ending in `_bpd`, in bits per dimension, each with the
        standard error of its mean over images.
    """
    data, settings = build("data", run.config), build("eval", run.config)
    x, key = whole_split(data, "test"), jax.random.key(seed)
    params, step = run.best("joint")
    vae_params, vae_step = run.best("vae")

    def score(
        label: str, terms: PerImage, params: Params, draws: int = settings.draws
    ) -> dict[str, np.ndarray]:
        batch_size = settings.batch_size
        return score_images(jax.jit(terms), params, x, key, draws=draws, batch_size=batch_size, label=label)

    lsgm = score("LSGM", _lsgm_terms(run.model), params)
    vae = score("VAE", _vae_terms(run.model), vae_params)
    joint_vae = score("LSGM's VAE, Normal prior", _vae_terms(run.model), params["vae"])
    report: dict[str, Any] = {"test_images": len(x), "chosen_step": step, "chosen_step_vae": vae_step}
    for term in ("nelbo", "reconstruction", "entropy", "cross_entropy"):
        for name, scores in (("lsgm", lsgm), ("vae", vae)):
            nats = scores[term]
            report |= _entries(f"{term}_{name}", estimate(nats))
            report |= _entries(f"{term}_{name}_bpd", estimate(bits_per_dimension(nats, x[0].size)))
    report |= _entries("nelbo_lsgm_vae_normal_prior", estimate(joint_vae["nelbo"]))
    report |= _entries("improvement", estimate(vae["nelbo"] - lsgm["nelbo"]))
    if ode:
        solver = build("solver", run.config)
        density = score("ODE", _ode_terms(run.model, solver, settings.probes), params, draws=1)
        report |= _entries("nelbo_lsgm_ode", estimate(density["nelbo"]))
        report["nelbo_ode_nfe"] = int(density["nfe"].max())
        report["nelbo_ode_failed"] = int((density["success"] < 1).sum())
    return report


def _entries(name: str, value: Estimate) -> dict[str, float]:
    return {name: value.mean, f"{name}_stderr": value.stderr}


def _named(bound: Bound) -> dict[str, jax.Array]:
    return {**bound._asdict(), "nelbo": bound.nelbo}


def _vae_terms(model: LSGM) -> PerImage:
    return lambda params, batch, key, stratum: _named(model.vae.bound(params, batch, key))


def _lsgm_terms(model: LSGM) -> PerImage:
    return lambda params, batch, key, stratum: _named(model.bound(params, batch, key, stratum))


def _ode_terms(model: LSGM, solver: ODESolver, probes: int) -> PerImage:
    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> dict[str, jax.Array]:
        k_vae, k_probe = jax.random.split(key)
        encoded = model.vae.autoencode(params["vae"], batch.x, k_vae, train=False)
        z_0, entropy, _, rest = encoded.latent
        prior = log_density(solver, model.process, model.eps_net(params), k_probe, z_0, probes)
        nelbo = encoded.reconstruction - entropy + rest - prior.log_prob
        return {"nelbo": nelbo, "success": prior.success, "nfe": jnp.full(len(batch.x), prior.nfe)}

    return terms


def _validator(per_image: PerImage, x: np.ndarray, batch_size: int) -> Callable[[Params], dict[str, float]]:
    def validate(params: Params) -> dict[str, float]:
        # The same key every time: what changes between two validations is the model alone.
        key = jax.random.key(0)
        values = score_images(per_image, params, x, key, draws=VALIDATION_DRAWS, batch_size=batch_size)
        return {name: float(value.mean()) for name, value in values.items()}

    return validate


def _drawer(generate: Callable[[Params, Key], Images]) -> Callable[[Params], np.ndarray]:
    compiled = jax.jit(generate)
    return lambda params: images.grid(np.asarray(compiled(params, jax.random.key(0))))


def _claim(workdir: pathlib.Path, config: Config) -> None:
    """Writes config.json; where checkpoints exist already, only what `MAY_CHANGE` lists may differ."""
    if (workdir / "config.json").exists() and any((workdir / "checkpoints").glob("*/[0-9]*")):
        changed = differences(read_config(workdir / "config.json"), config)
        changed = [text for text in changed if not text.startswith(MAY_CHANGE)]
        if changed:
            raise ConfigError(
                f"{workdir} holds a run with {changed[0]}: use the same config, or another --workdir"
            )
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {workdir} ({error.strerror}): choose another --workdir"
        ) from error
