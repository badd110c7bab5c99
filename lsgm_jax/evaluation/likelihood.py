"""Likelihood evaluation of a run's data: the NELBO by terms, ODE and importance-weighted bounds."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Key, Params
from lsgm_jax.config.factory import Experiment
from lsgm_jax.errors import ConfigError, NumericalError
from lsgm_jax.evaluation.cache import Arrays, Cache, digest
from lsgm_jax.evaluation.estimators import (
    Estimate,
    PerImage,
    bits_per_dimension,
    estimate,
    evaluate_images,
    importance_bound,
)
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.sampling.run import Run
from lsgm_jax.training.devices import OverDevices
from lsgm_jax.training.recipes.common import bound_terms, vae_terms

BOUNDS = ("nelbo", "ode", "iw")
ODE_SECTIONS = ("solver", "steps", "sampling", "divergence")


def evaluate(run: Run, metrics: Collection[str], *, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Evaluates the bounds of the model on a split, over all devices, and those of an LSGM's VAE next to them.

    Results are cached in the run's folder `evaluation`: an interrupted call resumes there.

    Args:
        metrics: of `BOUNDS`. "ode" integrates the probability flow for log p(z_0). "iw" does so for several latents
            per image and gives the importance-weighted bound, which is tighter. The NELBO is always computed.

    Returns:
        Entries for a report: terms in nats per sample and, ending in `_bpd`, in bits per dimension, each with the
        standard error of its mean over samples. A mean is None if one of its values is not finite, or its ODE was not
        solved, and an entry that ends in `_failed` has the number of those; see `require_finite`.

    Raises:
        ConfigError: for an LDM, for a metric that needs an ODE if the solver integrates none, or if devices cannot
            share a batch.
    """
    model, name, settings = run.model, run.experiment.name, run.experiment.evaluation
    if model.bound is None:
        raise ConfigError(
            f"an {name.upper()} gives images no likelihood, which {', '.join(BOUNDS)} are about: "
            "use --metrics=fid,kid,pr,time"
        )
    method = run.experiment.sampler.method
    if {"ode", "iw"} & set(metrics) and method.dynamics != "ode":
        raise ConfigError(
            f"solver {method.name!r} integrates no ODE, which the metrics ode and iw need: "
            "use one such as Tsit5, or skip them"
        )
    check_devices(settings.batch_size)
    evaluator = Evaluator(run, split, run.conditions.batch(split), seed)
    params, step = run.best(everywhere=True)
    report: dict[str, Any] = {f"{split}_images": len(evaluator.data.x), "chosen_step": step}
    report |= _bounds(evaluator, params)
    terms = OverDevices(ode_terms(run.experiment))
    if "iw" in metrics:
        draws = report["nelbo_iw_draws"] = settings.importance_draws
        bound = evaluator.importance(f"nelbo_{name}_iw", terms, params, draws=draws)
        report |= _entries(f"nelbo_{name}_iw", estimate(bound))
        report["nelbo_iw_failed"] = _failed(bound)
    if "ode" in metrics:
        density = evaluator.terms(f"nelbo_{name}_ode", terms, params, draws=1, sections=ODE_SECTIONS)
        report |= _entries(f"nelbo_{name}_ode", estimate(density["nelbo"]))
        report["nelbo_ode_nfe"] = int(density["nfe"].max())
        report["nelbo_ode_products"] = int(density["products"].max())
        report["nelbo_ode_failed"] = _failed(density["nelbo"])
    return report


def require_finite(entries: dict[str, Any]) -> None:
    """Checks that all bounds among the entries of `evaluate` are finite.

    Raises:
        NumericalError: if one is not; says which, and for how many samples.
    """
    (images,) = (number for name, number in entries.items() if name.endswith("_images"))
    failed = {name: count for name, count in entries.items() if name.endswith("_failed") and count}
    if failed:
        parts = (f"{name.removesuffix('_failed')} of {count}" for name, count in failed.items())
        raise NumericalError(
            f"{', '.join(parts)} of {images} samples is not finite or ran out of steps, so it has no mean: raise "
            "--config.steps.max_steps, --rtol or --t_min; if none helps, training has diverged"
        )


def check_devices(batch_size: int) -> None:
    """Checks that the devices can share a batch evenly.

    Raises:
        ConfigError: if they cannot.
    """
    if batch_size % jax.device_count():
        raise ConfigError(
            f"config.eval.batch_size={batch_size} does not divide over {jax.device_count()} devices: choose a multiple"
        )


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates the samples of a split; a result called `name` is cached in a file of that name."""

    run: Run
    split: str
    data: Batch  # host arrays
    seed: int

    def terms(
        self,
        name: str,
        terms: PerImage,
        params: Params,
        *,
        draws: int | None = None,
        sections: Collection[str] = (),
    ) -> Arrays:
        """Returns means over draws of (z_0, t, eps), by default as many as the config says; see `evaluate_images`.

        Args:
            sections: see `Run.identity`.
        """
        how = self._how(name, params, draws or self.run.experiment.evaluation.draws, sections)
        return evaluate_images(terms, params, self.data, **how)

    def importance(self, name: str, terms: PerImage, params: Params, *, draws: int) -> np.ndarray:
        """Returns the importance-weighted bound; see `importance_bound`."""
        how = self._how(name, params, draws, ODE_SECTIONS)
        return importance_bound(terms, params, self.data, **how)

    def _how(self, name: str, params: Params, draws: int, sections: Collection[str]) -> dict[str, Any]:
        batch_size = self.run.experiment.evaluation.batch_size
        of = self.run.identity(params, sections)
        of |= {"seed": self.seed, "draws": draws, "batch_size": batch_size, "images": digest(self.data.x)}
        of |= {} if self.data.condition is None else {"condition": digest(self.data.condition)}
        cache = Cache(self.run.workdir / "evaluation" / f"{name}-{self.split}.npz", of)
        key = jax.random.key(self.seed)
        return {"key": key, "draws": draws, "batch_size": batch_size, "cache": cache, "label": name}


def _bounds(evaluator: Evaluator, params: Params) -> dict[str, Any]:
    """The model's bound by terms; with a VAE also the VAE's, as it is now and as the first stage left it."""
    run, model, name = evaluator.run, evaluator.run.model, evaluator.run.experiment.name
    values = evaluator.terms(f"nelbo_{name}", OverDevices(bound_terms(model.bound)), params)
    report: dict[str, Any] = _by_terms(name, values, model.pixel_values)
    report[f"nelbo_{name}_failed"] = _failed(values["nelbo"])
    autoencoder = model.autoencoder
    if autoencoder is not None and autoencoder.bound is not None:
        stage = model.stages[0]
        label = f"nelbo_{name}_{stage}_gaussian_prior"
        terms = OverDevices(vae_terms(autoencoder.bound))  # compiled once for both VAEs
        alone = evaluator.terms(label, terms, params[stage])
        report |= _entries(label, estimate(alone["nelbo"]))
        if run.has_vae_stage:
            first_params, report[f"chosen_step_{stage}"] = run.best(stage, everywhere=True)
            first = evaluator.terms(f"nelbo_{stage}", terms, first_params)
            report |= _by_terms(stage, first, model.pixel_values)
            report |= _entries("improvement", estimate(first["nelbo"] - values["nelbo"]))
    return report


def _by_terms(name: str, values: Arrays, pixel_values: int) -> dict[str, float | None]:
    """The terms in nats, and in bits per dimension if the data have grey levels."""
    entries = {}
    for term in ("nelbo", "reconstruction", "entropy", "cross_entropy"):
        entries |= _entries(f"{term}_{name}", estimate(values[term]))
        if pixel_values:
            bits = bits_per_dimension(values[term], pixel_values)
            entries |= _entries(f"{term}_{name}_bpd", estimate(bits))
    return entries


def _entries(name: str, value: Estimate) -> dict[str, float | None]:
    """Mean and standard error, each None if it is not known: JSON has no NaN."""
    named = {name: value.mean, f"{name}_stderr": value.stderr}
    return {name: number if math.isfinite(number) else None for name, number in named.items()}


def _failed(values: np.ndarray) -> int:
    return int((~np.isfinite(values)).sum())


def ode_terms(planned: Experiment) -> PerImage:
    """Returns the terms of the bound along the probability-flow ODE as a function for `evaluate_images`."""
    sampler, divergence, ode_bound = planned.sampler, planned.divergence, planned.model.ode_bound

    def terms(params: Params, batch: Batch, key: Key, stratum: Stratum) -> dict[str, jax.Array]:
        bound = ode_bound(params, batch, key, sampler, divergence)
        # The density where a solver gave up is none of the data's.
        solved = lambda values: jnp.where(bound.success, values, jnp.nan)
        bound = bound._replace(nelbo=solved(bound.nelbo), log_weight=solved(bound.log_weight))
        return {name: jnp.broadcast_to(value, len(batch.x)) for name, value in bound._asdict().items()}

    return terms
