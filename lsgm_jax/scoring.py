"""The scores of a run: bounds on the log-likelihood of a whole split, by terms, by the ODE, importance-weighted."""

from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Key
from lsgm_jax.build import build, build_sampler
from lsgm_jax.data.pipeline import whole_split
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
from lsgm_jax.run import Run
from lsgm_jax.schema import ConfigError
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.stages import model_terms, vae_terms

Scores = dict[str, np.ndarray]


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
