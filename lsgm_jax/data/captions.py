"""Captions of images: where they are stored, and the caption that a class name makes."""

import functools
import itertools
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

from lsgm_jax.bounded import LIMITS, decoded, parse_json
from lsgm_jax.data.readers.archives import Archive
from lsgm_jax.data.readers.members import origin_of
from lsgm_jax.errors import DataError, printable

Captions = tuple[str, ...]  # all texts of one image, in no order of preference
METADATA = "metadata.jsonl"
WHERE = f'NAME.txt next to NAME.png, or "file_name" and "text" in {METADATA}'


def class_caption(name: str) -> str:
    """Returns a caption for an image with a class name but no text: `a photo of a sea lion` for `sea_lion`."""
    return f"a photo of a {name.replace('_', ' ').replace('/', ' ')}"


class FolderCaptions:
    """The texts of the images in a folder or an archive, read on demand.

    The texts of `NAME.png` are the lines of `NAME.txt` next to it. Without such a file they come from a line of a
    `metadata.jsonl`, as in Hugging Face's image folders: {"file_name": path from there, "text": text or list}.
    An empty file or text is the empty text.

    Args:
        archive: the files.
        images: the names of the images.
    """

    def __init__(self, archive: Archive, images: Sequence[str]):
        self._archive, names = archive, set(archive.names())
        files = {image: image.rpartition(".")[0] + ".txt" for image in images}
        self._text_files = {image: file for image, file in files.items() if file in names}
        self._lists = sorted(name for name in names if posixpath.basename(name) == METADATA)

    def __bool__(self) -> bool:
        """Returns whether any image has a text."""
        return bool(self._text_files) or bool(self._listed)

    @property
    def files(self) -> list[str]:
        """The names of the files that hold the texts."""
        return [*sorted(set(self._text_files.values())), *(self._lists if self._listed else [])]

    @property
    def candidates(self) -> list[str]:
        """The names of the files that may hold texts; none is read."""
        return [*self._text_files.values(), *self._lists]

    def of(self, image: str) -> Captions:
        """Returns the texts of one image, () if it has none.

        Raises:
            DataError: if the file with the texts is not UTF-8, or a line of it is not valid.
        """
        if image in self._text_files:
            lines = map(str.strip, _read(self._archive, self._text_files[image]).splitlines())
            return tuple(filter(None, lines)) or ("",)
        return self._listed.get(image, ())

    @functools.cached_property
    def _listed(self) -> dict[str, Captions]:
        found: dict[str, Captions] = {}
        for image, texts in itertools.chain.from_iterable(
            _entries(self._archive, name) for name in self._lists
        ):
            found[image] = found.get(image, ()) + texts  # an image may have several lines
        return found


def _entries(archive: Archive, name: str) -> Iterator[tuple[str, Captions]]:
    """Yields the names of images in a `metadata.jsonl` with their texts; other entries are skipped."""
    for number, line in enumerate(_read(archive, name).split("\n"), 1):
        where = printable(f"line {number} of {name} in {archive.path}")
        entry = parse_json(line, where, remedy="fix or remove it") if line.strip() else None
        if not isinstance(entry, dict) or not {"file_name", "text"} <= entry.keys():
            continue
        texts = entry["text"] if isinstance(entry["text"], list) else [entry["text"]]
        if not all(map(_is_text, (entry["file_name"], *texts))):
            raise DataError(f'{where} needs a name as "file_name", and as "text" a text or a list of texts')
        yield posixpath.normpath(posixpath.join(posixpath.dirname(name), entry["file_name"])), tuple(texts)


def _is_text(value: Any) -> bool:
    """Returns whether a value is text; half a character outside of the basic plane is none."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _read(archive: Archive, name: str) -> str:
    return decoded(archive.read(name, LIMITS.text), origin_of(archive, name), remedy="save it as such")
