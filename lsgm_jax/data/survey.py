"""What a run is trained and tested on: images of each split, classes, and what is skipped.

`survey` also checks every split, so that a damaged test image is found before training. Its result is printed when
training starts, and kept in the folder of the run.
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from tqdm import tqdm

from lsgm_jax.data.arrangement import LOOSE, SPLIT_NAMES
from lsgm_jax.data.inspection import inspect_bytes, inspect_files
from lsgm_jax.data.names import shortened, summary
from lsgm_jax.data.pipeline import Data, Samples
from lsgm_jax.data.repeats import repeated_files
from lsgm_jax.data.sources import FolderSource, TfdsSource
from lsgm_jax.data.spec import Split
from lsgm_jax.errors import DataError
from lsgm_jax.sealed import DamagedError, read_json, write_json

DATA = "data.json"  # in the folder of a run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The data of a run.

    Attributes:
        source: as the config names it.
        images: number of samples by split; none for a split that the source lacks.
        classes: names of the labels 0, 1, ...; empty if there are none.
        notes: a line for skipped files, and for images that stand in two splits.
        fingerprint: of the names, sizes and times of the files of a folder; "" for other sources.
    """

    source: str
    images: Mapping[str, int]
    classes: Sequence[str]
    notes: Sequence[str]
    fingerprint: str

    def lines(self) -> list[str]:
        """Returns what is printed when training starts."""
        counted = ", ".join(f"{count} {split}" for split, count in self.images.items())
        classes = f"; {len(self.classes)} classes: {shortened(self.classes)}" if self.classes else ""
        return [f"data {self.source}: {counted}{classes}", *self.notes]

    def save(self, workdir: pathlib.Path) -> None:
        """Writes data.json."""
        write_json(workdir / DATA, dataclasses.asdict(self))


def read_survey(workdir: pathlib.Path) -> Survey | None:
    """Reads data.json; returns None if there is none, as in runs of earlier versions.

    Raises:
        DamagedError: if it is not what was written.
    """
    path = workdir / DATA
    try:
        return Survey(**read_json(path))
    except FileNotFoundError:
        return None
    except TypeError as error:
        raise DamagedError(
            f"{path} is damaged ({error}): delete it, and the data are checked again"
        ) from error


def survey(data: Data, before: Survey | None = None) -> Survey:
    """Returns what the data set has, after a check of every split.

    Args:
        data: the data set.
        before: the survey of the same run when it began. What has not changed since then is not checked again.

    Raises:
        DataError: if an image is damaged or of another size.
    """
    samples = _opened(data)
    images = [found for found in samples.values() if isinstance(found, Split)]
    folders = {s.source.split: s.source for s in images if isinstance(s.source, FolderSource)}
    fingerprint = _fingerprint(folders)
    if before is not None and before.fingerprint == fingerprint:
        notes = before.notes
    else:
        notes = [*_notes(folders), *_changed(before, samples, fingerprint)]
        for split in images:
            _check(split)
    classes = list(samples["train"].classes)
    counts = {split: len(found) for split, found in samples.items()}
    return Survey(source=data.source, images=counts, classes=classes, notes=notes, fingerprint=fingerprint)


def check_classes(data: Data, classes: Sequence[str], before: Sequence[str]) -> None:
    """Checks that the data have the classes that they had when a run began.

    Raises:
        DataError: if they have others: labels would mean other classes.
    """
    if list(before) != list(classes):
        now, then = (shortened(names) or "none" for names in (classes, before))
        raise DataError(
            f"{data.source} has the classes {now}, and had {then} when this run began, so labels would mean other "
            "classes: restore its folders, or train in another --workdir"
        )


def _opened(data: Data) -> dict[str, Samples]:
    """Opens all splits; the test split may be missing, which `lsgm evaluate` will say if it matters."""
    samples = {split: data.open(split, decode=False) for split in ("train", "validation")}
    try:
        samples["test"] = data.open("test", decode=False)
    except DataError:
        return samples
    return samples


def _notes(folders: Mapping[str, FolderSource]) -> list[str]:
    """Returns the lines on skipped files and on images in two splits."""
    if not folders:
        return []
    source = next(iter(folders.values()))
    skipped = source.skipped()
    lines = [f"skipped {summary(skipped)}"] if skipped else []
    if LOOSE in source.classes:
        lines.append(f"images beside the folders of classes are a class of their own, {LOOSE!r}")
    return [*lines, *repeated_files({split: source.files for split, source in folders.items()}).lines()]


def _changed(before: Survey | None, samples: Mapping[str, Samples], fingerprint: str) -> list[str]:
    if before is None or not before.fingerprint or before.fingerprint == fingerprint:
        return []
    counts = ", ".join(
        f"{before.images.get(split, 0)} -> {len(found)} {split}" for split, found in samples.items()
    )
    return [f"the files have changed since this run began ({counts}): test images may have been trained on"]


def _fingerprint(folders: Mapping[str, FolderSource]) -> str:
    """Returns a digest of names, sizes and times, which changes with the files, without reading them."""
    digest = hashlib.sha256()
    for split in SPLIT_NAMES:
        for path in folders[split].files if split in folders else ():
            status = path.stat()
            digest.update(f"{split} {path.as_posix()!a} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest() if folders else ""


def _check(split: Split) -> None:
    """Checks the images of a split."""
    data, source = split.spec, split.source
    if data.kind == "classes":  # only the pixels tell whether there are as many classes
        for index in tqdm(range(len(split)), desc="checking label maps", delay=1, leave=False):
            split.batch(np.array([index]))
    elif isinstance(source, FolderSource):
        inspect_files(source.files, data.layout)
    elif isinstance(source, TfdsSource) and source.sizes_differ and data.fit == "exact":
        for index in tqdm(range(len(source)), desc="checking images", delay=1, leave=False):
            record = source[index]
            inspect_bytes(record.image, data.layout, record.origin)
