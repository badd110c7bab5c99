"""Random access to the encoded images of a data set, with labels and texts where it has them."""

import functools
import numbers
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lsgm_jax.bounded import decoded, read_file
from lsgm_jax.data.arrangement import SPLIT_NAMES, arrange
from lsgm_jax.data.builders import prepared_builder, tfds_builder
from lsgm_jax.data.captions import Captions, FolderCaptions
from lsgm_jax.data.images import FILE_BYTES
from lsgm_jax.data.names import Skipped
from lsgm_jax.data.readers.folder import no_images, other_files
from lsgm_jax.data.readers.trees import Folder
from lsgm_jax.errors import DataError, first_line, printable

DATA_DIR = "~/.cache/lsgm_jax"  # default
DAMAGED_SET = "the files of the set are damaged: remove it, and prepare it again"
PREPARED = "prepared"  # folder within data_dir for the sets of `lsgm data prepare`
VERSION = "1.0.0"  # of the layout of prepared sets
TEXT_FEATURES = ("captions", "caption", "text")  # names of features in TFDS data sets, in order of preference


class Record(NamedTuple):
    """An encoded image, its label, and its name for errors."""

    image: bytes
    label: int | None
    origin: str


@runtime_checkable
class Source(Protocol):
    """Random access to records."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the labels 0, 1, ...; empty if there are none."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def label(self, index: int) -> int | None:
        """Returns the label of a record without reading its image; None if the data set has no labels."""
        ...

    def captions(self, index: int) -> Captions | None:
        """Returns the texts of a record, at least one; None if the data set has no texts.

        Raises:
            DataError: if the data set has texts, but this record has none.
        """
        ...

    def skipped(self) -> Sequence[Skipped]:
        """Returns the files of a folder that are not read, of all splits; () for other data sets."""
        ...


def open_split(name: str, split: str, data_dir: str) -> Source:
    """Opens one split of a data set.

    A path (an existing folder, or anything that begins with `/`, `~` or `.`) is a folder of images. Any other name is
    a set of `lsgm data prepare` in `data_dir`, or, if there is none, a TFDS data set.

    Args:
        name: a path or a name.
        split: for a folder one of `SPLIT_NAMES`; otherwise any expression of TFDS's syntax ("train[:90%]").
        data_dir: root folder of prepared data sets.

    Raises:
        DataError: if the data set does not exist or has no such split.
    """
    root = pathlib.Path(data_dir).expanduser()
    if name.startswith(("/", "~", ".")):
        return FolderSource(pathlib.Path(name).expanduser(), split)
    if (prepared := root / PREPARED / name / VERSION).is_dir():
        return TfdsSource(prepared_builder(prepared), name, split)
    if pathlib.Path(name).is_dir():
        return FolderSource(pathlib.Path(name), split)
    return TfdsSource(tfds_builder(name, root), name, split)


class FolderSource:
    """Images of a folder and its sub-folders; see `arrange` for their splits, classes and order."""

    def __init__(self, folder: pathlib.Path, split: str):
        if split not in SPLIT_NAMES:
            raise DataError(
                f"a folder has the splits {', '.join(SPLIT_NAMES)}, not {split!r}: set config.data.splits"
            )
        if not folder.is_dir():
            remedy = f"make a data set of it by  lsgm data prepare folder --source={folder} --name=NAME"
            raise DataError(
                f"{folder} is a file: {remedy}"
                if folder.exists()
                else f"no folder {folder}: set config.data.source to a folder of images or the name of a data set"
            )
        self.split, self._archive = split, Folder(folder)
        self._found = arrange(self._archive.names(), folder)
        if split not in self._found.splits:
            raise DataError(self._without(split))
        self.classes = self._found.classes
        self._names = self._found.splits[split]
        self.files = self._archive.files(self._names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Record:
        path = self.files[index]
        return Record(read_file(path, most=FILE_BYTES), self.label(index), printable(str(path)))

    def label(self, index: int) -> int | None:
        """Returns the index of the class of an image; None if there is one class only."""
        return self._found.labels.get(self._names[index])

    def captions(self, index: int) -> Captions | None:
        """Returns the texts that `FolderCaptions` finds."""
        if not self._captions:
            return None
        if found := self._captions.of(self._names[index]):
            return found
        path = self.files[index]
        raise DataError(
            f"{path} has no text, though others have: write {path.with_suffix('.txt').name} next to it"
        )

    def skipped(self) -> Sequence[Skipped]:
        """Returns the files of the folder that are neither images nor texts of images."""
        return other_files(self._archive, self._found.skipped, self._captions)

    @functools.cached_property
    def _captions(self) -> FolderCaptions:
        return FolderCaptions(self._archive, [name for part in self._found.splits.values() for name in part])

    def _without(self, split: str) -> str:
        """Returns the message for a split without images."""
        folder, splits = self._archive.path, self._found.splits
        if not splits:
            return no_images(folder, self.skipped())
        how = "the names of its folders" if self._found.by_folder else "hashes of the names of its images"
        return f"no images for the split {split!r} in {folder}: by {how} there are {', '.join(splits)}"


class TfdsSource:
    """A split of a TFDS data set in the format array_record."""

    def __init__(self, builder: Any, name: str, split: str):
        import tensorflow_datasets as tfds

        features = builder.info.features
        if not _is(tfds.features.Image, features, "image"):
            raise DataError(f"data set {name!r} has no images: set config.data.source to one that has")
        self._name, self._split = name, split
        self.sizes_differ = None in features["image"].shape[:2]
        self._labelled = _is(tfds.features.ClassLabel, features, "label")
        named = self._labelled and features["label"].num_classes is not None
        self.classes: list[str] = features["label"].names if named else []
        self._text = next((name for name in TEXT_FEATURES if _is_text(features, name)), None)
        try:
            # Images stay encoded here; `images.decode` decodes them to the required layout.
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except ValueError as error:
            known = ", ".join(builder.info.splits)
            raise DataError(
                f"data set {name!r} has the splits {known}, which {split!r} does not name: set config.data.splits"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        record, origin = self._record(index), self._origin(index)
        label = int(record["label"]) if self._labelled else None
        return Record(record["image"], label, origin)

    def label(self, index: int) -> int | None:
        """Returns the label of a record; None if the data set has no labels."""
        return self[index].label if self._labelled else None

    def captions(self, index: int) -> Captions | None:
        """Returns the texts of the first of `TEXT_FEATURES` it has: a text, a list, or a list of {"text": text}."""
        if self._text is None:
            return None
        stored = self._record(index)[self._text]
        texts = stored["text"] if isinstance(stored, dict) else stored
        found = [texts] if isinstance(texts, bytes) else texts
        if len(found):
            return tuple(
                decoded(text, f"a text of {self._origin(index)}", remedy=DAMAGED_SET) for text in found
            )
        raise DataError(
            f"{self._origin(index)} has no {self._text}: set config.data.splits to those that have"
        )

    def _origin(self, index: int) -> str:
        return f"image {index} of {self._split!r} in {self._name}"

    def _record(self, index: int) -> dict[str, Any]:
        """Returns the features of a record, whose checksum the library verifies; a file cut short has others."""
        try:
            record = self._records[index]
            needed = {"image": bytes} | ({"label": numbers.Integral} if self._labelled else {})
            for name, kind in needed.items():
                if not isinstance(record[name], kind):
                    raise TypeError(f"its {name} is a {type(record[name]).__name__}")
        # The errors of the libraries for damaged files are not documented.
        except Exception as error:
            line = first_line(error)
            raise DataError(f"{self._origin(index)} cannot be read ({line}): {DAMAGED_SET}") from error
        return record

    def skipped(self) -> Sequence[Skipped]:
        """Returns (): preparation has skipped files before."""
        return ()


def _is(kind: type, features: Any, name: str) -> bool:
    return name in features and isinstance(features[name], kind)


def _is_text(features: Any, name: str) -> bool:
    """Returns whether a feature holds strings, or dictionaries with a string "text"; `dtype` would need TensorFlow."""
    kind = features[name].np_dtype if name in features else None
    kind = kind.get("text") if isinstance(kind, dict) else kind
    return kind is not None and np.dtype(kind) == np.object_
