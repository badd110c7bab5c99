"""Random access to the images of a data set: `len(source)` and `source[i]["image"]`, uint8 [h, w, c]."""

import contextlib
import hashlib
import io
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SPLIT_NAMES = ("train", "validation", "test")


class DataError(Exception):
    """The data set cannot be read; the message says what to do."""


@runtime_checkable
class Source(Protocol):
    """Random access to records {"image": uint8 [h, w, c], ...}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def open_split(name: str, split: str, data_dir: str) -> Source:
    """Opens one split of a TFDS data set or of a folder of images.

    Args:
        name: a path (anything with a separator, or an existing folder), or the name of a TFDS data set.
        split: for TFDS anything its syntax allows ("train[:90%]"); for a folder one of `SPLIT_NAMES`.
        data_dir: where TFDS keeps prepared data sets.

    Raises:
        DataError: if there is nothing to read.
    """
    if "/" in name or pathlib.Path(name).is_dir():
        return FolderSource(pathlib.Path(name).expanduser(), split)
    return _open_tfds(name, split, pathlib.Path(data_dir).expanduser())


class FolderSource:
    """Images of a folder and its sub-folders.

    Sub-folders `train`, `validation` and `test`, where all three exist, are the splits. Otherwise a hash of each
    file's relative path decides: 80 % train, 10 % validation, 10 % test, whatever else the folder holds.
    """

    def __init__(self, folder: pathlib.Path, split: str):
        if split not in SPLIT_NAMES:
            raise DataError(
                f"a folder has the splits {', '.join(SPLIT_NAMES)}, not {split!r}: set config.data.splits"
            )
        if not folder.is_dir():
            raise DataError(
                f"no folder {folder}: set config.data.source to a folder of images or a TFDS name"
            )
        prepared = all((folder / name).is_dir() for name in SPLIT_NAMES)
        root = folder / split if prepared else folder
        files = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
        self.files = (
            files if prepared else [p for p in files if _hashed_split(p.relative_to(folder)) == split]
        )
        if not self.files:
            raise DataError(
                f"no images for the split {split!r} in {folder}: looked for {', '.join(sorted(IMAGE_SUFFIXES))}"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image, UnidentifiedImageError

        path = self.files[index]
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"cannot decode {path}: remove or replace the file ({error})") from error
        return {"image": pixels if pixels.ndim == 3 else pixels[..., None], "path": str(path)}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """TFDS prints a screenful for what takes a second here."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _hashed_split(path: pathlib.Path) -> str:
    tenth = int.from_bytes(hashlib.sha256(path.as_posix().encode()).digest()[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def _open_tfds(name: str, split: str, data_dir: pathlib.Path) -> Source:
    import tensorflow_datasets as tfds

    from lsgm_jax.data import digits

    try:
        if name == "digits":
            builder: Any = digits.Digits(data_dir=data_dir, file_format="array_record")
            with _silence():
                builder.download_and_prepare()
        else:
            builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    except tfds.core.DatasetNotFoundError as error:
        raise DataError(
            f"TFDS has no data set {name!r}: set config.data.source to a TFDS name or a folder"
        ) from error
    except OSError as error:
        raise DataError(f"cannot write the data set {name!r} to {data_dir}: {error.strerror}") from error
    if not builder.data_path.exists():
        where = f"data_dir={str(data_dir)!r}, file_format='array_record'"
        prepare = f"tfds.builder({name!r}, {where}).download_and_prepare()"
        raise DataError(
            f"data set {name!r} is not prepared in {data_dir}: "
            f'run  python -c "import tensorflow_datasets as tfds; {prepare}"'
        )
    return builder.as_data_source(split=split)
