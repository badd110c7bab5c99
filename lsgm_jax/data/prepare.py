"""`lsgm data prepare`: makes a data set that a config can name from the files of the user."""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from lsgm_jax.bounded import parse_json, read_text
from lsgm_jax.data.builders import silence
from lsgm_jax.data.checksums import KNOWN, checksums
from lsgm_jax.data.images import Layout, as_file, decode, encode
from lsgm_jax.data.names import summary
from lsgm_jax.data.readers.celebahq import read_celebahq256
from lsgm_jax.data.readers.cifar10 import read_cifar10
from lsgm_jax.data.readers.contents import Contents, Example, Stream
from lsgm_jax.data.readers.folder import read_folder
from lsgm_jax.data.readers.imagenet import read_imagenet
from lsgm_jax.data.readers.mnist import read_mnist
from lsgm_jax.data.readers.omniglot import read_omniglot
from lsgm_jax.data.repeats import Repeats
from lsgm_jax.data.sources import PREPARED, VERSION
from lsgm_jax.errors import DataError, first_line
from lsgm_jax.locks import locked

READERS: dict[str, Callable[[pathlib.Path], Contents]] = {
    "mnist": read_mnist,
    "omniglot": read_omniglot,
    "cifar10": read_cifar10,
    "celebahq256": read_celebahq256,
    "imagenet32": functools.partial(read_imagenet, side=32),
    "imagenet64": functools.partial(read_imagenet, side=64),
    "folder": read_folder,
}
SCALABLE = {"folder": None, "celebahq256": 256}  # the allowed --size; None allows any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The arguments of `prepare`.

    Attributes:
        kind: a key of `READERS`.
        source: path of the files.
        data_dir: root folder of prepared sets.
        name: name of the set in configs; None takes `kind`.
        size: height and width to which images are scaled and cropped; None keeps the files unchanged.
        skip_bad: skip damaged images and list them, instead of refusing them.
    """

    kind: str
    source: pathlib.Path
    data_dir: pathlib.Path
    name: str | None = None
    size: int | None = None
    skip_bad: bool = False

    @property
    def called(self) -> str:
        """The name of the set in configs."""
        return self.name or self.kind

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the set."""
        return self.data_dir / PREPARED / self.called / VERSION


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """The `metadata.json` of the prepared set, and whether the set existed before."""

    record: dict[str, Any]
    was_there: bool


def prepare(job: Job) -> Outcome:
    """Writes the whole set, or nothing if it fails.

    A set that was made from the same files before stays unchanged.

    Raises:
        DataError: if the source cannot be read, or a set of this name was made from other files.
    """
    _check(job)
    contents = READERS[job.kind](job.source)
    root = job.source if job.source.is_dir() else job.source.parent
    record = {
        "kind": job.kind,
        "size": job.size,
        "source": str(job.source.resolve()),
        "sha256": checksums(contents.files, root),
    }
    if job.folder.exists():
        return Outcome(record=_same(job, record), was_there=True)
    parent = job.folder.parent
    with _no_empty_folders(parent), locked(parent, "prepared", "give another --name or --data_dir"):
        return _made(job, contents, record)


def _made(job: Job, contents: Contents, record: dict[str, Any]) -> Outcome:
    """Writes the set, unless another process has written it in the meantime."""
    if job.folder.exists():
        return Outcome(record=_same(job, record), was_there=True)
    record |= {"published": _published(record["sha256"]), "images": {}, "skipped": [], "repeated": []}
    record["classes"] = list(contents.classes)
    record["other_files"] = summary(contents.skipped) if contents.skipped else None
    with _all_or_nothing(job.folder):
        _write(job, contents, record)
    return Outcome(record=record, was_there=False)


def _check(job: Job) -> None:
    if job.kind not in READERS:
        raise DataError(f"lsgm data prepare {job.kind}: there are {', '.join(READERS)}")
    if job.kind == "folder" and job.name is None:
        raise DataError("a folder of images needs a name for configs to find it: give --name=NAME")
    if not re.fullmatch(r"[A-Za-z]\w*", job.called) or job.called == "digits":
        raise DataError(
            f"--name={job.called}: give letters, digits and _, and not the name of the built-in digits"
        )
    allowed = SCALABLE.get(job.kind, 0)
    if job.size is not None and (job.size < 1 or allowed not in (None, job.size)):
        whose = f"{job.kind} has images of one size" if not allowed else f"{job.kind} has --size={allowed}"
        raise DataError(f"--size={job.size}: {'give a positive number' if job.size < 1 else whose}")


def _same(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of the existing set, which must come from the same files."""
    remedy = f"remove it with  rm -r {job.folder.parent}  or give another --name"
    path = job.folder / "metadata.json"
    try:
        there = parse_json(read_text(path), path)
        if not isinstance(there, dict):
            raise DataError(f"{path} is no object")
    except DataError as error:
        raise DataError(f"{job.folder} is damaged, its metadata.json cannot be read: {remedy}") from error
    for key in ("kind", "size", "sha256"):
        if there.get(key) != record[key]:
            made = "other files" if key == "sha256" else f"{key}={there.get(key)}"
            raise DataError(f"{job.folder} was made from {made}: {remedy}")
    return there


def _published(sums: dict[str, str]) -> dict[str, str]:
    return {name: KNOWN[sum_] for name, sum_ in sums.items() if sum_ in KNOWN}


@contextlib.contextmanager
def _all_or_nothing(folder: pathlib.Path) -> Iterator[None]:
    """Removes unfinished files on any exit, those of an earlier killed run included."""
    parent = folder.parent
    try:
        _remove_unfinished(parent)
        yield
    # The writer of array_record raises a RuntimeError, with the words of the system within its own.
    except (OSError, RuntimeError) as error:
        raise DataError(f"cannot write {folder}: {_reason(error)}") from error
    finally:
        _remove_unfinished(parent)


def _reason(error: OSError | RuntimeError) -> str:
    """Returns the system's words for an error of writing, wherever its message has them."""
    words = map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO))
    return next((text for text in words if text in str(error)), first_line(error))


@contextlib.contextmanager
def _no_empty_folders(parent: pathlib.Path) -> Iterator[None]:
    try:
        yield
    finally:
        for empty in (parent, parent.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()  # fails if the folder is not empty


def _remove_unfinished(parent: pathlib.Path) -> None:
    for unfinished in parent.glob("incomplete.*"):  # TFDS renames this folder when all is written
        shutil.rmtree(unfinished)


def _write(job: Job, contents: Contents, record: dict[str, Any]) -> None:
    from lsgm_jax.data.prepared import Prepared, PreparedConfig

    total, repeats = sum(stream.count for stream in contents.splits.values()), Repeats()
    with tqdm(total=total, desc=f"preparing {job.called}", unit=" images", delay=1, leave=False) as bar:
        config = PreparedConfig(
            name=job.called,
            image_shape=contents.shape or (job.size, job.size, _channels(contents)),
            classes=contents.classes,
            captioned=contents.captioned,
            splits={
                split: functools.partial(_encoded, job, contents, split, stream, record, repeats, bar)
                for split, stream in contents.splits.items()
            },
            record=record,
        )
        builder: Any = Prepared(data_dir=job.data_dir, config=config, file_format="array_record")
        # TFDS requires a folder for downloads, although there are none.
        with silence(), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)


def _channels(contents: Contents) -> int:
    """Returns the channels (1 or 3) of the first image, 3 if it cannot be decoded."""
    first = next(next(iter(contents.splits.values())).read())
    assert isinstance(first.image, bytes)
    with contextlib.suppress(DataError):
        return decode(first.image, Layout(height=None, width=None, channels=None), first.origin).shape[-1]
    return 3


def _encoded(
    job: Job,
    contents: Contents,
    split: str,
    stream: Stream,
    record: dict[str, Any],
    repeats: Repeats,
    bar: tqdm,
) -> Iterator[Example]:
    """Yields the images of a split as encoded files, and counts written and skipped ones in `record`."""
    record["images"][split] = 0
    for example in stream.read():
        bar.update()
        try:
            image = _file(example, contents, job.size)
        except BadImage as error:
            if not job.skip_bad:
                raise DataError(f"{error}; --skip_bad skips damaged images") from error
            record["skipped"].append(example.origin)
            continue
        if example.label is not None and example.label >= len(contents.classes):
            raise DataError(
                f"{example.origin} has the label {example.label}: {job.kind} has {len(contents.classes)} classes"
            )
        record["images"][split] += 1
        content = example.image if isinstance(example.image, bytes) else example.image.tobytes()
        repeats.add(hashlib.sha256(content).digest(), split, example.origin)
        yield example._replace(image=image)
    record["repeated"][:] = repeats.lines()  # TFDS has its own copy of the dictionary, and the same list
    if not record["images"][split]:
        raise DataError(f"no image for the split {split!r} in {job.source} can be read")


class BadImage(DataError):
    """An image that cannot be decoded."""


def _file(example: Example, contents: Contents, size: int | None) -> bytes:
    """Returns the encoded image: the original file where possible, otherwise a new PNG file."""
    if isinstance(example.image, np.ndarray):
        return encode(example.image)
    fitted = Layout(height=size, width=size, channels=None, fit="crop")
    try:
        pixels = decode(example.image, fitted, example.origin)
    except DataError as error:
        raise BadImage(str(error)) from error
    if contents.shape is not None and pixels.shape[:2] != contents.shape[:2]:
        height, width = contents.shape[:2]
        raise DataError(
            f"{example.origin} has {pixels.shape[0]} x {pixels.shape[1]} pixels, not {height} x {width}: "
            f"give --size={height} to scale the images"
        )
    return as_file(example.image, example.origin) if size is None else encode(pixels)
