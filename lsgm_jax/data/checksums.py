"""Checksums of source files, and the known checksums of published ones."""

import gzip
import hashlib
import pathlib
from collections.abc import Sequence

from tqdm import tqdm

from lsgm_jax.bounded import CHUNK, reading
from lsgm_jax.data.readers.tars import is_tar
from lsgm_jax.errors import printable

LISTED = 16  # above this number of files a single checksum covers all of them
# sha256 of published files (of MNIST's after decompression) -> description.
KNOWN = {
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": "MNIST, images to train",
    "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5": "MNIST, labels to train",
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": "MNIST, images to test",
    "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2": "MNIST, labels to test",
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce": "CIFAR-10, Python version",
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd": "CIFAR-10, binary version",
    "94226337ecc1b0309d9fcd0167127aaadc931587035fbcb53925235edbaec4fc": "ImageNet 32 x 32, to train",
    "013990e6dec1237dcd1f9beadbab81ead6604cc119af5cacbfb59ae28148377a": "ImageNet 32 x 32, to validate",
}


def checksums(files: Sequence[pathlib.Path], root: pathlib.Path) -> dict[str, str]:
    """Returns sha256 by file name relative to `root`.

    More than `LISTED` files have one entry instead, the sha256 of all names and checksums. A gzip file is
    decompressed first, so compressing it again does not change its checksum.
    """
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, unit="B", unit_scale=True, desc="checksums", delay=1, leave=False) as bar:
        sums = {
            printable(path.relative_to(root).as_posix()): _sha256(path, bar) for path in sorted(set(files))
        }
    if len(sums) <= LISTED:
        return sums
    lines = "".join(f"{sum_} {name}\n" for name, sum_ in sums.items())
    return {f"{len(sums)} files": hashlib.sha256(lines.encode()).hexdigest()}


def _sha256(path: pathlib.Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as raw, reading(path):
        packed = path.suffix == ".gz" and not is_tar(path)
        file = gzip.open(raw) if packed else raw  # noqa: SIM115  # `raw` is closed
        before = bar.n
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            bar.update(before + raw.tell() - bar.n)
    return digest.hexdigest()
