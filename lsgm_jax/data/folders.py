"""What the names of image files say: which split an image is in, and of which class it is."""

import hashlib
import pathlib
from collections.abc import Iterable, Sequence

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".npy"}
SPLIT_NAMES = ("train", "validation", "test")
SPLIT_OF_FOLDER = {name: name for name in SPLIT_NAMES} | {"val": "validation", "valid": "validation"}


def image_names(names: Iterable[str]) -> list[str]:
    """Those of images, sorted. Hidden files are none, nor is what macOS adds to an archive."""
    return sorted(name for name in names if _is_image(pathlib.PurePosixPath(name)))


def _is_image(path: pathlib.PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def mixed(names: Iterable[str]) -> list[str]:
    """In the order of their hashes, so that the first images are a fair share: by name they would be of one class."""
    return sorted(names, key=_hash)


def split_by_name(names: Sequence[str]) -> dict[str, list[str]]:
    """The names of each split.

    Where all images lie in folders `train`, `validation` (also `val`, `valid`) and `test`, with `train` among them,
    those are the splits that there are. Otherwise a hash of each name decides: 80 % train, 10 % validation, 10 % test,
    whatever other names there are.
    """
    given = has_split_folders(names)
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    for name in names:
        splits[SPLIT_OF_FOLDER[_top(name)] if given else _hashed_split(name)].append(name)
    return {split: chosen for split, chosen in splits.items() if chosen}


def has_split_folders(names: Sequence[str]) -> bool:
    """Whether the outermost folders are the splits."""
    tops = {_top(name) for name in names}
    return "train" in tops and tops <= SPLIT_OF_FOLDER.keys()


def classes_by_name(names: Sequence[str]) -> tuple[list[str], list[int]]:
    """The classes, sorted, and the index of each name's: the class of an image is the folder that holds it.

    Folders of splits are not part of it. Both lists are empty where a single folder holds all.
    """
    skip = 1 if has_split_folders(names) else 0
    folders = ["/".join(name.split("/")[skip:-1]) or "." for name in names]
    classes = sorted(set(folders))
    if len(classes) < 2:
        return [], []
    index = {folder: number for number, folder in enumerate(classes)}
    return classes, [index[folder] for folder in folders]


def without_common_folder(names: Sequence[str]) -> dict[str, str]:
    """Short name -> name: without the one outermost folder that archives tend to have, if they all have it."""
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
