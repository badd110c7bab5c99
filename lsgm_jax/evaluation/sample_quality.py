"""Sample quality metrics of a run: FID, KID, precision and recall against the data, and the time of sampling."""

import pathlib
import statistics
import time
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from lsgm_jax.config.specs import FEWEST_SAMPLES
from lsgm_jax.data import pixels
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import ConfigError, DataError
from lsgm_jax.evaluation.cache import Cache, digest
from lsgm_jax.evaluation.classifier import Training, classifier_of
from lsgm_jax.evaluation.features import Extractor, ImageSet, describe_images, fingerprint
from lsgm_jax.evaluation.fid import frechet_distance, kernel_distance, precision_recall
from lsgm_jax.evaluation.generators import (
    Generator,
    images_of,
    model_generator,
    reconstructor,
    vae_generator,
)
from lsgm_jax.evaluation.inception_weights import read_inception
from lsgm_jax.evaluation.likelihood import check_devices
from lsgm_jax.evaluation.plots import to_bytes
from lsgm_jax.sampling.failures import Failures
from lsgm_jax.sampling.run import Run
from lsgm_jax.sampling.sample import compile_sampling

TIMED_BATCH = 16  # images, as the papers time it
REFERENCE_BATCH = 64  # the same for all runs, so that they share the cache


def choose_extractor(run: Run, inception: pathlib.Path | None) -> Extractor:
    """Returns Inception with the weights of a file, or else a classifier of the run's data set.

    Raises:
        ConfigError: if the run's data are no images, or the section `eval` is refused.
        ConversionError: if the file is not to be read.
        DataError: if there is no file and the data set has no labels.
    """
    data, settings = images_of(run), run.experiment.evaluation
    check_devices(settings.batch_size)  # before a classifier is trained, which takes a while
    if inception is not None:
        if data.shape[-1] not in (1, 3):
            raise ConfigError(f"images of shape {data.shape} are neither grey nor RGB, which Inception needs")
        return read_inception(inception)
    if data.open("train", decode=False).label(0) is None:
        raise DataError(
            f"{data.source} has no labels to train a classifier on: give weights of Inception by --inception=FILE"
        )
    return classifier_of(data, _shared_folder(data), Training(steps=settings.classifier_steps))


def compare_with_data(
    run: Run, metrics: Collection[str], extractor: Extractor, *, seed: int = 0
) -> dict[str, Any]:
    """Computes distances between samples of the model and the reference split, and those of its first stage.

    For an LSGM the first stage gives samples of its VAE, for an LDM reconstructions of the test split. Samples are
    drawn and described in batches over all devices. Features of the reference are cached with the data sets
    (`data_dir`), for all runs; those of samples in the run's folder `evaluation`, where an interrupted call resumes.

    Args:
        metrics: of `generators.DISTANCES`.

    Returns:
        Entries for a report. `fid_` and `kid_` are distances, `precision_` and `recall_` shares.

    Raises:
        ConfigError: if the data are no images, or devices cannot share a batch.
        DataError: if the reference split has too few images.
        NumericalError: if samples are not finite or run out of steps. The first batch with such samples ends the call.
    """
    settings, data = run.experiment.evaluation, images_of(run)
    check_devices(settings.batch_size)
    reference = _describe_split(data, settings.reference, extractor)
    name, generator = run.experiment.name, model_generator(run)
    drawn = _describe_samples(run, name, generator, extractor, seed)
    report: dict[str, Any] = {
        "features": extractor.name,
        "features_identity": extractor.identity,
        "reference": settings.reference,
        "reference_images": reference.moments.size,
        "samples": settings.samples,
        "samples_step": generator.step,
        "samples_solver": run.experiment.sampler.method.name,
        "samples_nfe": drawn.means["nfe"],
        "samples_failed": 0,  # a failed sample ends the call: a distance of the others would flatter
    }
    if "right" in drawn.means:
        report["class_accuracy"] = drawn.means["right"]
    report |= _distances(name, metrics, reference, drawn)
    stage = run.model.stages[0]
    if run.has_vae_stage:
        baseline = _describe_samples(run, stage, vae_generator(run), extractor, seed)
        report |= _distances(stage, metrics, reference, baseline)
    if run.model.autoencoder is not None and run.model.autoencoder.sample is None:
        passed = _describe_samples(run, stage, reconstructor(run), extractor, seed)
        report |= _distances(stage, metrics, reference, passed)
        report[f"psnr_{stage}"] = passed.means["psnr"]
    return report


def _distances(
    name: str, metrics: Collection[str], reference: ImageSet, drawn: ImageSet
) -> dict[str, float | None]:
    entries: dict[str, float | None] = {}
    if "fid" in metrics:
        entries[f"fid_{name}"] = frechet_distance(reference.moments, drawn.moments)
    if "kid" in metrics:
        kid = kernel_distance(reference.features, drawn.features, label=f"kid_{name}")
        entries |= {f"kid_{name}": kid.mean, f"kid_{name}_std": kid.std if kid.varies else None}
        entries |= {"kid_subsets": kid.subsets, "kid_subset": kid.size}
    if "pr" in metrics:
        count = min(len(reference.features), len(drawn.features))  # a larger set would reach farther
        shares = precision_recall(reference.features[:count], drawn.features[:count], label=f"pr_{name}")
        entries |= {
            f"precision_{name}": shares.precision,
            f"recall_{name}": shares.recall,
            "pr_images": count,
        }
    return entries


def time_sampling(run: Run, *, seed: int = 0) -> dict[str, Any]:
    """Returns the seconds for 16 samples on one device, median of three with everything compiled, and the NFE."""
    params, _ = run.best()
    draw, _ = compile_sampling(run, params, TIMED_BATCH)
    seconds, nfe = [], []
    for key in jax.random.split(jax.random.key(seed), 4):  # the first warms up
        start = time.monotonic()
        x, solution = jax.block_until_ready(draw(params, key))
        seconds.append(time.monotonic() - start)
        if (failures := Failures.among(solution.success, x)).total:
            raise failures.error(consequence=", and their time says nothing")
        nfe.append(int(solution.nfe))
    return {
        "time_images": TIMED_BATCH,
        "time_seconds": statistics.median(seconds[1:]),
        "time_nfe": statistics.median(nfe[1:]),
        "time_solver": run.experiment.sampler.method.name,
        "time_device": jax.devices()[0].device_kind,
    }


def _describe_samples(run: Run, name: str, generator: Generator, extractor: Extractor, seed: int) -> ImageSet:
    settings, key, data = run.experiment.evaluation, jax.random.key(seed), images_of(run)

    def batches(job: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        k_noise, k_decode = jax.random.split(jax.random.fold_in(key, job))
        condition = generator.request(np.arange(job * batch_size, (job + 1) * batch_size) % count)
        given = generator.noise(k_noise), condition
        x, known = generator.decode(generator.params, given, k_decode)
        if (failures := Failures.among(known.pop("success", True), x)).total:
            raise failures.error(f"samples of {name} in batch {job}", consequence=", so there is no distance")
        x = as_data(x, data, np.random.default_rng((seed, job)))
        if generator.of_classes and extractor.classify is not None:
            known |= {"right": extractor.classify(extractor.params, to_bytes(x)) == condition}
        return x, known

    count, batch_size = settings.samples, settings.batch_size
    of = generator.of | {"seed": seed, "samples": count, "batch_size": batch_size, "by": extractor.identity}
    cache = Cache(run.workdir / "evaluation" / f"samples_{name}.npz", of)
    return describe_images(extractor, batches, count, batch_size, cache=cache, label=f"samples of {name}")


def as_data(x: np.ndarray, data: DataSpec, rng: np.random.Generator) -> np.ndarray:
    """Returns expected images as the data set has them: pixels of binarised images are drawn, not grey."""
    if data.binarise != "dynamic":
        return x
    return pixels.quantise(pixels.bits(to_bytes(x), pixels.thresholds(rng, x.shape)), 2)


def _describe_split(data: DataSpec, split: str, extractor: Extractor) -> ImageSet:
    samples = data.open(split)
    if len(samples) < FEWEST_SAMPLES:
        raise DataError(
            f"{len(samples)} images in the {split} split of {data.source}: distances take {FEWEST_SAMPLES} at least"
        )
    order = np.random.default_rng(0).permutation(len(samples))  # the cached features are a fair share
    batch_size = max(REFERENCE_BATCH // jax.device_count(), 1) * jax.device_count()

    def batches(job: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        rows = np.resize(order[job * batch_size : (job + 1) * batch_size], batch_size)
        return samples.batch(rows)["x"], {}

    of = {"images": fingerprint(data, split), "batch_size": batch_size, "by": extractor.identity}
    name = f"{pathlib.Path(data.source).name}-{split}-{digest(of)}.npz"
    cache = Cache(_shared_folder(data) / name, of)
    return describe_images(extractor, batches, len(samples), batch_size, cache=cache, label=f"{split} split")


def _shared_folder(data: DataSpec) -> pathlib.Path:
    """The folder in which all runs share the cache of a data set."""
    return pathlib.Path(data.data_dir).expanduser() / "evaluation"
