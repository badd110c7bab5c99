"""Splits and classes of images, from the names of their files."""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy"}
SPLIT_NAMES = ("train", "validation", "test")
SPLIT_OF_FOLDER = {name: name for name in SPLIT_NAMES} | {"val": "validation", "valid": "validation"}


def image_names(names: Iterable[str]) -> list[str]:
    """Returns the names of image files, sorted, without hidden files and the files that macOS adds to an archive."""
    return sorted(name for name in names if _is_image(pathlib.PurePosixPath(name)))


def _is_image(path: pathlib.PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def mixed(names: Iterable[str]) -> list[str]:
    """Sorts names by their hashes, so that the first images have all classes; sorted by name they would have one."""
    return sorted(names, key=_hash)


def split_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """Returns the names of each split.

    If all images lie in folders `train`, `validation` (also `val`, `valid`) and `test`, with `train` among them, these
    are the splits. Otherwise a hash of each name assigns 80 % to train, 10 % to validation and 10 % to test; the split
    of a name does not depend on the other names.
    """
    given = has_split_folders(names)
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for name in names:
        splits[SPLIT_OF_FOLDER[_top(name)] if given else _hashed_split(name)].append(name)
    return {split: chosen for split, chosen in splits.items() if chosen}


def has_split_folders(names: Sequence[str]) -> bool:
    """Returns whether the outermost folders are the splits."""
    tops = {_top(name) for name in names}
    return "train" in tops and tops <= SPLIT_OF_FOLDER.keys()


def classes_by_name(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """Returns the sorted classes, and the class index of each name. The class of an image is its folder.

    The folder of the split is not part of the class. Both lists are empty if all images are in one folder.
    """
    skip = 1 if has_split_folders(names) else 0
    folders = ["/".join(name.split("/")[skip:-1]) or "." for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return [], []
    index = {folder: number for number, folder in enumerate(classes)}
    return classes, [index[folder] for folder in folders]


def without_common_folder(names: Sequence[str]) -> dict[str, str]:
    """Returns {short name: name}; short names lack the outermost folder if it is the same for all."""
    tops = {_top(name) for name in names}
    packed = len(tops) == 1 and tops.isdisjoint({".", *SPLIT_OF_FOLDER})
    return {name.split("/", 1)[1] if packed else name: name for name in names}


def _top(name: str) -> str:
    folder, separator, _ = name.partition("/")
    return folder if separator else "."


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(_hash(name)[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
