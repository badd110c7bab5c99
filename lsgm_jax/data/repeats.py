"""Images that stand in two splits: a test on them is a test on training images."""

import collections
import hashlib
import pathlib
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from lsgm_jax.bounded import CHUNK

DIGEST = 16  # bytes: among 2^40 images, two that differ have the same with a probability of 2^-49


class Repeats:
    """Counts the images of a split that were added to an earlier split with the same bytes."""

    def __init__(self):
        self._first: dict[bytes, str] = {}
        self._found: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, digest: bytes, split: str, name: str) -> None:
        """Adds an image by the digest of its content."""
        first = self._first.setdefault(digest[:DIGEST], split)
        if first != split:
            self._found[f"{first} and {split}"].append(name)

    def counts(self) -> dict[str, int]:
        """Returns the number of images by pair of splits: {"train and test": 2}."""
        return {pair: len(names) for pair, names in self._found.items()}

    def lines(self) -> list[str]:
        """Returns a line for each pair of splits, which names the first image."""
        return [
            f"{len(names)} image{'s' * (len(names) > 1)} in both {pair}, with the same bytes; "
            f"the first is {min(names)}"
            for pair, names in self._found.items()
        ]


def repeated_files(splits: Mapping[str, Sequence[pathlib.Path]]) -> Repeats:
    """Finds the image files in two splits; only those whose sizes occur in two splits are read."""
    where: dict[int, set[str]] = collections.defaultdict(set)
    sizes = {path: path.stat().st_size for paths in splits.values() for path in paths}
    for split, paths in splits.items():
        for path in paths:
            where[sizes[path]].add(split)
    alike = [(split, p) for split, paths in splits.items() for p in paths if len(where[sizes[p]]) > 1]
    found = Repeats()
    for split, path in tqdm(alike, desc="comparing splits", unit=" images", delay=1, leave=False):
        found.add(_sha256(path), split, str(path))
    return found


def _sha256(path: pathlib.Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.digest()
