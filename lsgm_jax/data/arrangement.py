"""Splits and classes of images from the names of their files, whatever tree of folders the names form.

`arrange` puts every file into one split, or into the list of skipped files with the reason. It depends on nothing but
the names: not on their order, on `./`, on the kind of slash, on folders around all images, or on the case of the
folders of splits. What cannot be meant is refused: a wrong guess would train on test images.
"""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

from lsgm_jax.data.names import Folder, Skipped, SortKey, components, hashed, natural, why_not_an_image
from lsgm_jax.errors import DataError, printable

LOOSE = "."  # the class of images beside the folders of the other classes
SPLIT_NAMES = ("train", "validation", "test")
SPELLINGS = {
    "train": "train trainset training trn",
    "validation": "validation validationset val valset valid validate dev devset development eval evaluation",
    "test": "test testset testing tst holdout",
}
SPLIT_OF_WORD = {word: split for split, words in SPELLINGS.items() for word in words.split()}
# Words beside that of a split that do not make it another folder: `test_images`, `train2017`, `trainA`.
NEUTRAL = frozenset(
    (
        *("set", "sets", "split", "data", "dataset", "image", "images", "img", "imgs", "picture", "pictures"),
        *("photos", "jpg", "jpeg", "png"),
    )
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrangement:
    """The splits and classes of a tree of files.

    Attributes:
        splits: names of images by split, in the order of their hashes; see `mixed`. No split is empty.
        classes: names of the labels 0, 1, ...; empty if all images have the same class.
        labels: label by name of image; empty without classes.
        by_folder: whether folders name the splits; otherwise hashes of the names choose them.
        skipped: the files that are not read.
    """

    splits: Mapping[str, Sequence[str]]
    classes: Sequence[str]
    labels: Mapping[str, int]
    by_folder: bool
    skipped: Sequence[Skipped]


def arrange(names: Iterable[str], where: object) -> Arrangement:
    """Returns the splits and classes of the images among `names`.

    Splits: if on one level all images lie in folders with names of splits, in whatever case and spelling (`Train`,
    `val`, `test_images`), these are the splits. If no folder is named like a split, a hash of each name assigns 80 % to
    train, 10 % to validation and 10 % to test; it does not depend on the other names, but for the folders around all.

    Classes: the other folders, without those around all images, in natural order.

    Args:
        names: of all files of the tree.
        where: name of the tree in errors.

    Raises:
        DataError: if some images lie in folders of splits and others do not, or two folders name one split.
    """
    folders, skipped = _images(names)
    level, named = _split_level(folders, where)
    splits: dict[str, list[str]] = {split: [] for split in SPLIT_NAMES}
    short = _without_outer(folders, level)
    for name in sorted(folders, key=lambda name: hashed(short[name])):
        split = _hashed_split(short[name]) if level is None else named[folders[name][level]]
        splits[split].append(name)
    classes, labels = _classes(folders, level)
    return Arrangement(
        splits={split: chosen for split, chosen in splits.items() if chosen},
        classes=classes,
        labels=labels,
        by_folder=level is not None,
        skipped=skipped,
    )


def image_names(names: Iterable[str]) -> list[str]:
    """Returns the names of image files in natural order."""
    return sorted(_images(names)[0], key=natural)


def splits_by_folder(names: Sequence[str], where: object) -> dict[str, list[str]] | None:
    """Returns files of any kind by split, in natural order; None if no folder is named like a split.

    Raises:
        DataError: as `arrange`.
    """
    folders = {name: components(name)[:-1] for name in names}
    level, named = _split_level(folders, where)
    if level is None:
        return None
    splits: dict[str, list[str]] = {}
    for name in sorted(names, key=natural):
        splits.setdefault(named[folders[name][level]], []).append(name)
    return splits


# Images among the files


def _images(names: Iterable[str]) -> tuple[dict[str, Folder], list[Skipped]]:
    """Returns the folders of each image, and the other files."""
    folders: dict[str, Folder] = {}
    skipped, first = [], {}
    for name in sorted(names):
        parts = components(name)
        if reason := why_not_an_image(parts):
            skipped.append(Skipped(name, reason))
        elif parts in first:
            skipped.append(Skipped(name, f"another name of {printable(first[parts])}"))
        else:
            first[parts], folders[name] = name, parts[:-1]
    return folders, skipped


# Folders of splits


def _split_level(folders: Mapping[str, Folder], where: object) -> tuple[int | None, dict[str, str]]:
    """Returns the level of the folders of splits, and their splits by name; None if there are no such folders."""
    unique = set(folders.values())
    levels = [_named(level) for level in _levels(unique)]
    counts = [len(set(named.values())) for named in levels]
    if not any(counts):
        return None, {}
    # A folder around all others may bear such a name as well (`test/train/1.png`, `test/test/2.png`): two splits go
    # before one.
    enough = min(max(counts), 2)
    for level, named in enumerate(levels):
        if counts[level] >= enough and all(len(f) > level and f[level] in named for f in unique):
            _refuse_two_folders(named, where)
            return level, named
    level = next(level for level, count in enumerate(counts) if count >= enough)
    raise _mixture(folders, level, levels[level], where)


def _levels(folders: Iterable[Folder]) -> list[set[str]]:
    """Returns the names of the folders of each level, outermost first."""
    levels: list[set[str]] = []
    for folder in folders:
        levels += [set() for _ in range(len(folder) - len(levels))]
        for level, name in zip(levels, folder, strict=False):
            level.add(name)
    return levels


def _named(names: Iterable[str]) -> dict[str, str]:
    """Returns the splits of those folders of one level that are named like splits.

    `DIV2K_train_HR` and `trains` count if there is another like `DIV2K_valid_HR` and `tests`; alone they could be
    classes, as `train_station`.
    """
    named, alike = {}, collections.defaultdict(dict)
    for name in names:
        words = re.findall(r"[^\W\d_]+", _spaced(name).lower())
        singular = [word if word in SPLIT_OF_WORD else word.removesuffix("s") for word in words]
        splits = [SPLIT_OF_WORD[word] for word in singular if word in SPLIT_OF_WORD]
        others = [word for word in singular if word not in SPLIT_OF_WORD]
        if len(splits) != 1:
            continue
        if not SPLIT_OF_WORD.keys().isdisjoint(words) and all(
            word in NEUTRAL or len(word) == 1 for word in others
        ):
            named[name] = splits[0]
        alike[tuple(others)][name] = splits[0]
    for group in alike.values():
        if len(set(group.values())) > 1:
            named |= group
    return named


def _spaced(name: str) -> str:
    """Returns a name with its words apart: `trainA` is `train A`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)


def _mixture(folders: Mapping[str, Folder], level: int, named: Mapping[str, str], where: object) -> DataError:
    """Returns the error for images in folders of splits with others beside them, which names one of each."""
    inside = {name for name, folder in folders.items() if len(folder) > level and folder[level] in named}
    outside = min(folders.keys() - inside)
    folder = folders[min(inside)][level]
    return DataError(
        f"{printable(folder)!r} in {where} is named like a split ({named[folder]}), but {printable(outside)} and "
        f"{len(folders) - len(inside) - 1} more images lie in no such folder: move them into folders train, validation "
        "and test, or away; or rename the folder if it is a class"
    )


def _refuse_two_folders(named: Mapping[str, str], where: object) -> None:
    """Refuses two folders for one split."""
    first: dict[str, str] = {}
    for folder, split in sorted(named.items()):
        if other := first.get(split):
            raise DataError(
                f"{printable(other)!r} and {printable(folder)!r} in {where} both name the split {split}: keep one, "
                "move its images into the other, or rename it"
            )
        first[split] = folder


def _hashed_split(name: str) -> str:
    tenth = int.from_bytes(hashed(name)[:4], "big") % 10
    return {8: "validation", 9: "test"}.get(tenth, "train")


# Classes


def _classes(folders: Mapping[str, Folder], level: int | None) -> tuple[list[str], dict[str, int]]:
    """Returns the classes in natural order, and the label of each image; both empty if there is one class."""
    inner = {name: _without(folder, level) for name, folder in folders.items()}
    outer = len(_common(inner.values()))
    class_of = {folder: printable("/".join(folder[outer:])) or LOOSE for folder in set(inner.values())}
    classes = sorted(set(class_of.values()), key=_class_order)
    if len(classes) < 2:
        return [], {}
    index = {name: number for number, name in enumerate(classes)}
    return classes, {name: index[class_of[folder]] for name, folder in inner.items()}


def _class_order(name: str) -> list[tuple[int, float, SortKey]]:
    """Returns a sort key: folders named by numbers by their values, then the others."""
    return [
        (0, float(part), natural(part))
        if re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", part)
        else (1, 0.0, natural(part))
        for part in name.split("/")
    ]


def _without(folder: Folder, level: int | None) -> Folder:
    return folder if level is None else folder[:level] + folder[level + 1 :]


def _common(folders: Iterable[Folder]) -> Folder:
    """Returns the folders around all images."""
    found = set(folders)
    pairs = zip(min(found), max(found), strict=False) if found else ()
    return tuple(one for one, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _without_outer(folders: Mapping[str, Folder], level: int | None) -> dict[str, str]:
    """Returns names for hashes: without the folders around all images, and with folders of splits in lower case."""
    outer = len(_common(folders.values()))
    if level is not None:
        outer = min(outer, level)
    short = {}
    for name, folder in folders.items():
        parts = list(folder)
        if level is not None:
            parts[level] = parts[level].lower()
        short[name] = "/".join([*parts[outer:], components(name)[-1]])
    return short
