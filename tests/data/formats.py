"""A small valid file of every format of data, how to read it, and how to tell that what is read is right."""

import dataclasses
import gzip
import io
import json
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.io

from lsgm_jax.data.captions import FolderCaptions
from lsgm_jax.data.prepare import READERS
from lsgm_jax.data.readers.archives import Folder
from lsgm_jax.data.readers.contents import Contents, Example
from lsgm_jax.data.readers.imagenet import read_imagenet
from lsgm_jax.data.tokenizer import Tokenizer
from lsgm_jax.errors import DataError
from tests.data import published
from tests.data.published import colour, grey, labels


@dataclasses.dataclass(frozen=True)
class Format:
    """A valid file and its reader.

    Attributes:
        name: of the file that is damaged.
        content: the bytes that are damaged.
        read: reads a folder with that file.
        wrap: what goes around damaged bytes, such as a compression with its checksum.
        others: other files in the folder.
        sealed: whether a checksum covers all of what is read, so that nothing but the original may come out.
    """

    name: str
    content: bytes
    read: Callable[[pathlib.Path], Any]
    wrap: Callable[[bytes], bytes] = bytes
    others: dict[str, bytes] = dataclasses.field(default_factory=dict)
    sealed: bool = False

    def write(self, folder: pathlib.Path, content: bytes) -> None:
        """Writes the file with this content, and the others."""
        for name, other in self.others.items():
            (folder / name).write_bytes(other)
        (folder / self.name).write_bytes(self.wrap(content))


def examples(kind: str, source: str = "") -> Callable[[pathlib.Path], list]:
    """Returns a reader of all images with labels, which checks that they are images and classes."""
    reader = READERS.get(kind) or (lambda folder: read_imagenet(folder, side=8))

    def read(folder: pathlib.Path) -> list:
        contents, found = reader(folder / source), []
        for stream in contents.splits.values():
            images = list(stream.read())
            assert len(images) == stream.count, f"{len(images)} images, not {stream.count}"
            found += [_checked(example, contents) for example in images]
        return found

    return read


def _checked(example: Example, contents: Contents) -> tuple[bytes, int | None]:
    """Returns the bytes of an image and its label, which are right for the data set."""
    image, label = example.image, example.label
    if isinstance(image, np.ndarray):
        assert image.shape == contents.shape
        assert image.dtype == np.uint8
    assert (label is None) == (not contents.classes)
    assert label is None or label >= 0, label
    if label is not None and label >= len(contents.classes):  # as `prepare` does, which sees each image
        raise DataError(f"{example.origin} has the label {label}")
    return image if isinstance(image, bytes) else image.tobytes(), label


def member(names: tuple[str, ...], rest: dict[str, bytes]) -> Callable[[bytes], bytes]:
    """Returns a function that zips damaged bytes as the member `names[0]`, with the others."""

    def wrap(content: bytes) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, other in {names[0]: content, **rest}.items():
                archive.writestr(name, other)
        return file.getvalue()

    return wrap


def parts(npz: bytes) -> dict[str, bytes]:
    """Returns the members of a zip file."""
    with zipfile.ZipFile(io.BytesIO(npz)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def within(npz: bytes, name: str) -> dict[str, Any]:
    """Returns the fields of a format whose damage is in one member of an archive."""
    members = parts(npz)
    content = members.pop(f"{name}.npy")
    return {"content": content, "wrap": member((f"{name}.npy",), members)}


def sealed_record(data: bytes) -> bytes:
    """Returns a TFRecord of any data with right checksums."""
    length = struct.pack("<Q", len(data))
    return length + published.masked(length) + data + published.masked(data)


def matlab(compressed: bool) -> bytes:
    """Returns a chardata.mat of a few characters."""
    file = io.BytesIO()
    columns = [
        np.stack([image.T.ravel() for image in part], axis=1) / 255.0 for part in (grey(3), grey(2, seed=1))
    ]
    hot = [np.eye(5)[:, labels(n, 5)] for n in (3, 2)]
    content = {"data": columns[0], "testdata": columns[1], "target": hot[0], "testtarget": hot[1]}
    scipy.io.savemat(file, content, do_compression=compressed)
    return file.getvalue()


def matlab_variable(
    name: bytes, shape: tuple[int, ...], values: bytes, *, kind: int | None, order: str = "<"
) -> bytes:
    """Encodes a double array with values of the type `kind`, or cells for None, as the format is described."""

    def element(kind: int, content: bytes) -> bytes:
        return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)

    flags = element(6, struct.pack(f"{order}II", 6 if kind else 1, 0))
    axes = element(5, struct.pack(f"{order}{len(shape)}i", *shape))
    content = flags + axes + element(1, name) + (element(kind, values) if kind else values)
    return struct.pack(f"{order}II", 14, len(content)) + content


def matlab_file(*variables: bytes, order: str = "<", version: int = 0x0100, zeros: int = 0) -> bytes:
    """Encodes a MATLAB file; with `zeros`, the first variable expands to so many of them."""
    mark = b"IM" if order == "<" else b"MI"
    content = b"MATLAB 5.0".ljust(124) + struct.pack(f"{order}H", version) + mark
    if zeros:
        packer = zlib.compressobj(1)
        packed = b"".join(packer.compress(bytes(2**20)) for _ in range(zeros >> 20)) + packer.flush()
        content += struct.pack(f"{order}II", 15, len(packed)) + packed
    return content + b"".join(variables)


def matlab_element() -> dict[str, Any]:
    """Returns the fields of a format whose damage is in a compressed variable of chardata.mat."""
    plain = matlab(False)
    stop = 128 + 8 + struct.unpack("<I", plain[132:136])[0]

    def wrap(element: bytes) -> bytes:
        packed = zlib.compress(element)
        return plain[:128] + struct.pack("<II", 15, len(packed)) + packed + plain[stop:]

    return {"content": plain[128:stop], "wrap": wrap}


def texts(folder: pathlib.Path) -> list:
    """Returns the texts of two images."""
    captions = FolderCaptions(Folder(folder), ["a.png", "b.png"])
    found = [captions.of(name) for name in ("a.png", "b.png")] if captions else []
    assert all(isinstance(text, str) for image in found for text in image)
    return found


def vocabulary(folder: pathlib.Path) -> np.ndarray:
    """Returns the ids of a text."""
    tokenizer = Tokenizer.read(folder / "vocab.txt")
    ids = tokenizer.encode(["a red bird"], 8, cut=True)
    assert ids.min() >= 0
    assert ids.max() < tokenizer.pieces
    return ids


IDX = published.idx(grey(4))
JPEGS = published.cifar_jpegs([published.image_file(x, "JPEG") for x in colour(3)], labels(3))
IMAGENET = published.npz(data=published.by_channel(colour(2, 8)), labels=[1, 1000], mean=np.zeros(3))
NPY = io.BytesIO()
np.save(NPY, colour(2, 256))
RECORDS = published.tfrecords(colour(2, 256))
RECORD = RECORDS[12 : len(RECORDS) // 2 - 4]
METADATA = b"".join(
    json.dumps({"file_name": f"{name}.png", "text": [f"a red {name}", "b"]}).encode() + b"\n" for name in "ab"
)
VOCABULARY = "\n".join(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "bi", "##rd", "ä", ""]
).encode()
PICKLES = {
    "python2": published.python2_pickle(published.by_channel(colour(2)), labels(2)),
    "python3": published.python3_pickle(published.by_channel(colour(2)), labels(2)),
    "imagenet": published.python3_pickle(published.by_channel(colour(2, 8)), labels(2) + 1),
}
MNIST = "train-images-idx3-ubyte"
LABELS = "train-labels-idx1-ubyte"
FORMATS = {
    "idx": Format(MNIST, IDX, examples("mnist"), others={LABELS: published.idx(labels(4))}),
    "idx labels": Format(LABELS, published.idx(labels(4)), examples("mnist"), others={MNIST: IDX}),
    "idx.gz": Format(f"{MNIST}.gz", gzip.compress(IDX), examples("mnist"), sealed=True),
    "idx in gz": Format(f"{MNIST}.gz", IDX, examples("mnist"), gzip.compress),
    "mat": Format("chardata.mat", matlab(False), examples("omniglot")),
    "mat compressed": Format("chardata.mat", matlab(True), examples("omniglot")),
    "mat in zlib": Format("chardata.mat", read=examples("omniglot"), **matlab_element()),
    "tfrecord": Format("r08.tfrecords", RECORDS, examples("celebahq256"), sealed=True),
    "tfrecord data": Format("r08.tfrecords", RECORD, examples("celebahq256"), sealed_record),
    "npy": Format("celeba.npy", NPY.getvalue(), examples("celebahq256", "celeba.npy")),
    "cifar bin": Format(
        "data_batch_1.bin", published.cifar_binary(colour(2), labels(2)), examples("cifar10")
    ),
    "cifar jpegs": Format("train_0.npz", JPEGS, examples("cifar10"), sealed=True),
    "cifar offsets": Format("train_0.npz", read=examples("cifar10"), **within(JPEGS, "offsets")),
    "cifar labels": Format("train_0.npz", read=examples("cifar10"), **within(JPEGS, "labels")),
    "cifar python2": Format("data_batch_1", PICKLES["python2"], examples("cifar10")),
    "cifar python3": Format("data_batch_1", PICKLES["python3"], examples("cifar10")),
    "imagenet pickle": Format("val_data", PICKLES["imagenet"], examples("imagenet8")),
    "imagenet npz": Format("val_data.npz", IMAGENET, examples("imagenet8"), sealed=True),
    "imagenet labels": Format("val_data.npz", read=examples("imagenet8"), **within(IMAGENET, "labels")),
    "imagenet data": Format("val_data.npz", read=examples("imagenet8"), **within(IMAGENET, "data")),
    "captions": Format("a.txt", "a red bird\nein roter Vögel\n".encode(), texts, others={"b.txt": b""}),
    "metadata": Format("metadata.jsonl", METADATA, texts),
    "vocabulary": Format("vocab.txt", VOCABULARY, vocabulary),
}
