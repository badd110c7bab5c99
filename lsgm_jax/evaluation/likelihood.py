"""Bounds on the log-likelihood of a run's data: by terms, by the ODE, importance-weighted."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Key
from lsgm_jax.config.build_running import build_sampler
from lsgm_jax.config.load import SAMPLING_SECTIONS
from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.cache import Arrays, Cache, digest
from lsgm_jax.evaluation.estimators import (
    Estimate,
    PerImage,
    bits_per_dimension,
    estimate,
    evaluate_images,
    importance_bound,
)
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.sampler import Sampler
from lsgm_jax.training.devices import OverDevices
from lsgm_jax.training.recipes.lsgm import vae_terms
from lsgm_jax.training.recipes.parts import model_terms

BOUNDS = ("nelbo", "ode", "iw")
ODE_SECTIONS = ("solver", "steps", "sampling", "divergence")


def evaluate(run: Run, metrics: Collection[str], *, split: str = "test", seed: int = 0) -> dict[str, Any]:
    """Scores the model on a split, over all devices, and beside an LSGM the VAE of its first stage.

    What has been scored is kept in the run's folder `evaluation`: a call that was interrupted goes on there.

    Args:
        metrics: of `BOUNDS`. "ode" integrates the probability flow for log p(z_0), "iw" does so for several latents
            per image and gives the importance-weighted bound, which is tighter. The NELBO comes with either.

    Returns:
        Entries for a report: terms in nats per sample and, ending in `_bpd`, in bits per dimension, each with the
        standard error of its mean over samples.

    Raises:
        ConfigError: for an LDM, for a metric that needs an ODE if the solver integrates none, or if devices cannot
            share a batch.
    """
    if isinstance(run.model, LDM):
        raise ConfigError(
            f"an LDM gives images no likelihood, which {', '.join(BOUNDS)} are about: use --metrics=fid,kid,pr,time"
        )
    settings, sampler = build("eval", run.config), build_sampler(run.config)
    if {"ode", "iw"} & set(metrics) and sampler.method.dynamics != "ode":
        raise ConfigError(
            f"solver {sampler.method.name!r} integrates no ODE, which the metrics ode and iw need: "
            "use one such as Tsit5, or leave them out"
        )
    check_devices(settings.batch_size)
    scorer = Scorer(run, split, run.conditions.batch(split), seed)
    params, step = run.best(everywhere=True)
    report: dict[str, Any] = {f"{split}_images": len(scorer.data.x), "chosen_step": step}
    report |= _bounds(scorer, params)
    terms, name = _ode_terms(run.model, sampler, build("divergence", run.config)), run.config.model
    if "iw" in metrics:
        draws = report["nelbo_iw_draws"] = settings.importance_draws
        bound = scorer.weigh(f"nelbo_{name}_iw", terms, params, draws=draws)
        report |= _entries(f"nelbo_{name}_iw", estimate(bound))
    if "ode" in metrics:
        density = scorer.score(f"nelbo_{name}_ode", terms, params, draws=1, sections=ODE_SECTIONS)
        report |= _entries(f"nelbo_{name}_ode", estimate(density["nelbo"]))
        report["nelbo_ode_nfe"] = int(density["nfe"].max())
        report["nelbo_ode_products"] = int(density["products"].max())
        report["nelbo_ode_failed"] = int((density["success"] < 1).sum())
    return report


def check_devices(batch_size: int) -> None:
    """Raises ConfigError if the devices cannot share a batch evenly."""
    if batch_size % jax.device_count():
        raise ConfigError(
            f"config.eval.batch_size={batch_size} does not divide over {jax.device_count()} devices: choose a multiple"
        )


def what_is_scored(config: Config, params: Params, sections: Collection[str]) -> dict[str, Any]:
    """What a number of a run depends on, as JSON has it.

    Args:
        sections: those of `SAMPLING_SECTIONS` that it depends on; the rest of the config always counts.
    """
    left_out = set(SAMPLING_SECTIONS) - set(sections)
    return {
        "config": {name: value for name, value in config.to_dict().items() if name not in left_out},
        "parameters": digest(params),
    }


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores the samples of a split; what is called `name` goes to a file of that name."""

    run: Run
    split: str
    data: Batch  # host arrays
    seed: int

    def score(
        self,
        name: str,
        terms: PerImage,
        params: Params,
        *,
        draws: int | None = None,
        sections: Collection[str] = (),
    ) -> Arrays:
        """Means over draws of (z_0, t, eps), by default as many as the config says; see `evaluate_images`.

        Args:
            sections: as for `what_is_scored`.
        """
        how = self._how(name, params, draws or build("eval", self.run.config).draws, sections)
        return evaluate_images(OverDevices(terms), params, self.data, **how)

    def weigh(self, name: str, terms: PerImage, params: Params, *, draws: int) -> np.ndarray:
        """See `importance_bound`."""
        how = self._how(name, params, draws, ODE_SECTIONS)
        return importance_bound(OverDevices(terms), params, self.data, **how)

    def _how(self, name: str, params: Params, draws: int, sections: Collection[str]) -> dict[str, Any]:
        batch_size = build("eval", self.run.config).batch_size
        of = what_is_scored(self.run.config, params, sections)
        of |= {"seed": self.seed, "draws": draws, "batch_size": batch_size, "images": digest(self.data.x)}
        of |= {} if self.data.condition is None else {"condition": digest(self.data.condition)}
        cache = Cache(self.run.workdir / "evaluation" / f"{name}-{self.split}.npz", of)
        key = jax.random.key(self.seed)
        return {"key": key, "draws": draws, "batch_size": batch_size, "cache": cache, "label": name}


def _bounds(scorer: Scorer, params: Params) -> dict[str, Any]:
    """The model's bound by terms; for an LSGM also that of its VAE, alone and as the first stage left it."""
    model, name = scorer.run.model, scorer.run.config.model
    assert not isinstance(model, LDM)
    scores = scorer.score(f"nelbo_{name}", model_terms(model), params)
    report: dict[str, Any] = _by_terms(name, scores, model.pixel_values)
    if isinstance(model, LSGM):
        normal = scorer.score("nelbo_lsgm_vae_gaussian_prior", vae_terms(model), params["vae"])
        report |= _entries("nelbo_lsgm_vae_gaussian_prior", estimate(normal["nelbo"]))
        if scorer.run.has_vae_stage:
            vae_params, report["chosen_step_vae"] = scorer.run.best("vae", everywhere=True)
            vae = scorer.score("nelbo_vae", vae_terms(model), vae_params)
            report |= _by_terms("vae", vae, model.pixel_values)
            report |= _entries("improvement", estimate(vae["nelbo"] - scores["nelbo"]))
    return report


def _by_terms(name: str, scores: Arrays, pixel_values: int) -> dict[str, float]:
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
