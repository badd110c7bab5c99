"""The metrics of `lsgm evaluate`: computed one after the other, printed, and added to the report."""

import argparse
from collections.abc import Callable, Sequence

from lsgm_jax.errors import NumericalError
from lsgm_jax.evaluation import likelihood, report, sample_quality
from lsgm_jax.evaluation.features import Extractor
from lsgm_jax.evaluation.generators import DISTANCES
from lsgm_jax.sampling.run import Run


def compute_metrics(
    opened: Run, options: argparse.Namespace, metrics: Sequence[str], extractor: Extractor | None
) -> None:
    """Computes all metrics; one whose numbers fail does not keep the others from being computed.

    Args:
        extractor: features for the distances among the metrics; None without distances.

    Raises:
        NumericalError: at the end, with what all metrics that failed say.
    """
    parts: list[Callable[[], None]] = []
    if any(name in likelihood.BOUNDS for name in metrics):
        parts.append(lambda: _bounds(opened, options, metrics))
    if extractor is not None:
        parts.append(lambda: _distances(opened, options, metrics, extractor))
    if "time" in metrics:
        parts.append(lambda: _time(opened, options))
    _call_all(parts)


def _bounds(opened: Run, options: argparse.Namespace, metrics: Sequence[str]) -> None:
    entries = likelihood.evaluate(opened, metrics, split=options.split, seed=options.seed)
    report.add_likelihoods(opened.workdir, options.split, entries | {"evaluate_seed": options.seed})
    print(report.likelihood_table(entries, options.split))
    likelihood.require_finite(entries)


def _distances(
    opened: Run, options: argparse.Namespace, metrics: Sequence[str], extractor: Extractor
) -> None:
    chosen = [name for name in metrics if name in DISTANCES]
    entries = sample_quality.compare_with_data(opened, chosen, extractor, seed=options.seed)
    report.add_distances(opened.workdir, entries | {"seed": options.seed})
    print(report.distance_table(entries))


def _time(opened: Run, options: argparse.Namespace) -> None:
    entries = sample_quality.time_sampling(opened, seed=options.seed)
    report.add_to_report(opened.workdir, **entries)
    print(report.time_line(entries))


def _call_all(parts: Sequence[Callable[[], None]]) -> None:
    found: list[NumericalError] = []
    for part in parts:
        try:
            part()
        except NumericalError as error:
            found.append(error)
    if found:
        kinds = {type(error) for error in found}
        raise (kinds.pop() if len(kinds) == 1 else NumericalError)("; ".join(map(str, found)))
