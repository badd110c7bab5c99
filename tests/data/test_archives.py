"""Folders, zip and tar files give the same names and bytes; links are followed, and nothing expands beyond limits."""

import bz2
import gzip
import io
import lzma
import os
import pathlib
import stat
import tarfile
import time
import zipfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsgm_jax.data.readers.archives import open_archive
from lsgm_jax.data.readers.folder import read_folder
from lsgm_jax.errors import DataError
from tests.data.published import tar, write, zipped

GIB = 2**30
FILES = {
    f"{split}/{name}/{i}.png": f"{split}{name}{i}".encode()
    for split in ("train", "test")
    for name in "ab"
    for i in "01"
}


def contents(path):
    archive = open_archive(path)
    return {name: archive.read(name) for name in archive.names()}


def tar_of(path, members, mode="w"):
    """Writes a tar file of (TarInfo, bytes)."""
    with tarfile.open(path, mode) as file:
        for info, content in members:
            file.addfile(info, io.BytesIO(content))
    return path


def member(name, content=b"", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, target
    return info, content


def zip_of(path, members):
    """Writes a zip file of {name: bytes, or a link's target as text}."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would change it
            if isinstance(content, str):
                info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, content)
    return path


@pytest.mark.parametrize(
    "ending", [".tar", ".tar.gz", ".tgz", ".TAR.GZ", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip", ".ZIP"]
)
@pytest.mark.parametrize("form", ["{}", "./{}", "windows"])
def test_every_archive_has_the_files_of_the_folder(tmp_path, ending, form):
    named = {
        name.replace("/", "\\") if form == "windows" else form.format(name): c for name, c in FILES.items()
    }
    path = tmp_path / f"set{ending}"
    if ending.lower() == ".zip":
        zip_of(path, named)
    else:
        packed = {"g": "w:gz", "b": "w:bz2", "x": "w:xz"}
        mode = next(
            (
                m
                for letter, m in packed.items()
                if letter in ending.lower().replace(".tar", "").replace("t", "")
            ),
            "w",
        )
        tar_of(path, [member(name, content) for name, content in named.items()], mode)
    assert contents(path) == FILES


def test_the_folder_has_its_files_and_those_of_links(tmp_path):
    for name, content in FILES.items():
        write(tmp_path / "disk" / name, content)
    (tmp_path / "set").mkdir()
    (tmp_path / "set/train").symlink_to(tmp_path / "disk/train")
    (tmp_path / "set/test").symlink_to("../disk/test")
    assert contents(tmp_path / "set") == FILES
    (tmp_path / "whole").symlink_to(tmp_path / "set")
    assert contents(tmp_path / "whole") == FILES


def test_what_is_no_regular_file_is_skipped_unread(tmp_path):
    write(tmp_path / "a.png", b"a")
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".gone").symlink_to("nowhere")
    archive = open_archive(tmp_path)
    assert archive.names() == ["a.png"]
    assert {(file.name, file.reason) for file in archive.skipped} == {
        ("fifo.png", "no regular file"),
        ("zero.png", "no regular file"),
        (".cache", "hidden"),
        (".gone", "hidden"),
    }


@pytest.mark.parametrize(
    ("link", "target", "message"),
    [
        ("a/loop", "..", "a/loop in .* is a link to a folder that holds it: remove it"),
        ("a/self", ".", "a/self in .* is a link to a folder that holds it"),
        ("gone", "nowhere", "gone in .* is a link to nowhere, which cannot be opened"),
        ("round", "round", "round in .* is a link to round, which cannot be opened"),
    ],
)
def test_a_link_that_leads_nowhere_or_in_circles_is_named(tmp_path, link, target, message):
    write(tmp_path / "a/1.png", b"a")
    (tmp_path / link).symlink_to(target)
    with pytest.raises(DataError, match=message):
        open_archive(tmp_path)


LINKS = {
    "copy.png": "train/a/0.png",
    "again.png": "copy.png",
    "dev": "test",
    "deep/x": "../train/a",
    "deep/y.png": "x/1.png",
}
LINKED = {
    "copy.png": "train/a/0.png",
    "again.png": "train/a/0.png",
    **{f"dev/{name}/{i}.png": f"test/{name}/{i}.png" for name in "ab" for i in "01"},
    "deep/x/0.png": "train/a/0.png",
    "deep/x/1.png": "train/a/1.png",
    "deep/y.png": "train/a/1.png",
}


@pytest.mark.parametrize("form", ["tar", "zip"])
def test_links_within_an_archive_are_followed(tmp_path, form):
    """Tar itself agrees: unpacked, the files and links read the same."""
    expected = FILES | {name: FILES[real] for name, real in LINKED.items()}
    if form == "zip":
        assert contents(zip_of(tmp_path / "set.zip", LINKS | FILES)) == expected
        return
    links = [member(name, kind=tarfile.SYMTYPE, target=target) for name, target in LINKS.items()]
    path = tar_of(tmp_path / "set.tar", [*links, *(member(*item) for item in FILES.items())])
    assert contents(path) == expected
    with tarfile.open(path) as file:
        file.extractall(tmp_path / "unpacked", filter="data")
    assert contents(tmp_path / "unpacked") == expected


def test_hard_links_are_their_files(tmp_path):
    write(tmp_path / "set/0.png", b"zero")
    os.link(tmp_path / "set/0.png", tmp_path / "set/1.png")
    with tarfile.open(tmp_path / "set.tar", "w") as file:
        file.add(tmp_path / "set", arcname="set")
    assert contents(tmp_path / "set.tar") == {"set/0.png": b"zero", "set/1.png": b"zero"}


@pytest.mark.parametrize("form", ["tar", "zip"])
@pytest.mark.parametrize(
    ("links", "message"),
    [
        ({"a.png": "../x.png"}, "a.png in .* is a link out of the archive: remove it"),
        ({"a.png": "/etc/passwd"}, "a.png in .* is a link out of the archive"),
        ({"a.png": "b.png"}, "a.png in .* is a link to b.png, which is not there"),
        ({"a.png": "b.png", "b.png": "a.png"}, "in .* is a link into a circle"),
        ({"train/a/loop": ".."}, "train/a/loop in .* is a link to a folder that holds it"),
        ({"x/y": "../z", "z/w": "../x"}, "is a link (to a folder that holds it|into a circle)"),
    ],
)
def test_links_that_lead_nowhere_are_named(tmp_path, form, links, message):
    path = tmp_path / f"set.{form}"
    if form == "zip":
        zip_of(path, links | FILES)
    else:
        tar_of(path, [member(name, kind=tarfile.SYMTYPE, target=target) for name, target in links.items()])
    with pytest.raises(DataError, match=message if form == "zip" or "holds" not in message else "is a link"):
        open_archive(path)


def test_of_two_members_with_one_name_the_later_counts(tmp_path):
    path = tar_of(tmp_path / "set.tar", [member("a.png", b"old"), member("./a.png", b"new")])
    assert contents(path) == {"a.png": b"new"}
    assert [file.name for file in open_archive(path).skipped] == ["./a.png"]


def test_devices_and_fifos_in_a_tar_file_are_skipped(tmp_path):
    path = tar_of(
        tmp_path / "set.tar",
        [
            member("f.png", kind=tarfile.FIFOTYPE),
            member("c.png", kind=tarfile.CHRTYPE),
            member("a.png", b"a"),
        ],
    )
    assert contents(path) == {"a.png": b"a"}
    assert [file.reason for file in open_archive(path).skipped] == ["no regular file"] * 2


@pytest.mark.parametrize("form", ["{}", "./{}", "set/{}", "./a/set/{}", "windows"])
def test_a_set_has_the_same_splits_and_classes_in_every_form(tmp_path, form):
    named = {
        name.replace("/", "\\") if form == "windows" else form.format(name): c for name, c in FILES.items()
    }
    for name, content in named.items():
        write(tmp_path / "folder" / name, content)
    zip_of(tmp_path / "set.zip", named)
    tar_of(tmp_path / "set.tar.xz", [member(name, content) for name, content in named.items()], "w:xz")
    for path in ("folder", "set.zip", "set.tar.xz"):
        found = read_folder(tmp_path / path)
        assert {split: stream.count for split, stream in found.splits.items()} == {"train": 4, "test": 4}
        assert found.classes == ["a", "b"]
        for split, stream in found.splits.items():
            images = sorted((example.image, example.label) for example in stream.read())
            assert images == [(f"{split}{name}{i}".encode(), "ab".index(name)) for name in "ab" for i in "01"]


# Damage and bombs: one line, at once


def header(name, size):
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def refused(path, message, within=10.0):
    """Opens and reads everything, and checks that it ends soon and in one line."""
    start = time.process_time()
    with pytest.raises(DataError, match=message) as error:
        contents(path)
    assert time.process_time() - start < within
    assert "\n" not in str(error.value)


def test_a_bomb_of_zeros_is_refused(tmp_path):
    """1 GiB from less than 1 MB: the limit is a hundred times the file."""
    for ending, module in (("gz", gzip), ("xz", lzma), ("bz2", bz2)):
        path = tmp_path / f"a.tar.{ending}"
        path.write_bytes(module.compress(bytes(2**24)) * 64)
        refused(path, f"a.tar.{ending} says that it has .* at most [0-9]+ are taken")


def test_the_size_that_a_member_states_is_checked_before_memory_is_taken(tmp_path):
    """A zip member of 3 GiB from 3 MB; tar members of more bytes than the file, or than there are."""
    with (
        zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("a.png", "w", force_zip64=True) as stream,
    ):
        for _ in range(24):
            stream.write(bytes(2**24))
    refused(tmp_path / "a.zip", "a.zip says that it has 402653184 bytes, and at most [0-9]+ are taken")
    for size in (6 * GIB, 2**62, 8**11 - 1):
        path = write(tmp_path / "b.tar", header("a.png", size) + bytes(10240))
        refused(path, "b.tar is damaged or incomplete .it ends within a.png")
    pax = header("a", 2 * GIB)
    for kind in (b"x", b"g", b"L", b"K"):
        block = bytearray(pax)
        block[156:157], block[148:156] = kind, b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        path = tmp_path / "c.tar"
        with path.open("wb") as file:
            file.write(bytes(block))
            file.truncate(3 * GIB)  # a hole
        refused(path, "c.tar says that it has 2147483648 bytes of names")


def test_a_sparse_member_states_more_than_it_has(tmp_path):
    path = tmp_path / "a.tar"
    info = tarfile.TarInfo("a.png")
    info.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "a.png",
        "GNU.sparse.realsize": str(2**50),
    }
    content = b"1\n0\n512\n".ljust(512, b"\0") + bytes(512)
    info.size = len(content)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        file.addfile(info, io.BytesIO(content))
    refused(path, "a.png in .* says that it has 1125899906842624 bytes")


@pytest.mark.parametrize("ending", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip"])
def test_no_truncated_archive_is_taken(tmp_path, ending):
    path = tmp_path / f"set{ending}"
    if ending == ".zip":
        zip_of(path, FILES)
    else:
        tar_of(
            path, [member(*item) for item in FILES.items()], "w" + (":" + ending[5:] if ending[4:] else "")
        )
    whole = path.read_bytes()
    ends = range(0, len(whole) - (9728 if ending == ".tar" else 0), max(1, len(whole) // 20))
    for end in ends:
        path.write_bytes(whole[:end])
        refused(path, "is damaged or incomplete|cannot read")


def test_a_damaged_header_is_no_end(tmp_path):
    """The tarfile module ends there, and what follows would be lost without a word."""
    whole = tar_of(tmp_path / "a.tar", [member(*item) for item in FILES.items()]).read_bytes()
    damaged = bytearray(whole)
    damaged[3 * 1024 + 5] ^= 1
    refused(
        write(tmp_path / "b.tar", bytes(damaged)),
        "b.tar is damaged or incomplete .no member and no end at byte 3072",
    )
    refused(
        write(tmp_path / "c.tar", whole + whole), "c.tar is damaged or incomplete .more bytes follow its end"
    )


def test_archives_of_other_kinds_are_named(tmp_path):
    for name in ("a.rar", "a.7z", "a.tar.zst"):
        refused(write(tmp_path / name, b"Rar!"), "files are not read: unpack it and give the folder")
    refused(pathlib.Path("/dev/zero"), "is a device")


def test_time_is_linear_in_the_links(tmp_path):
    """Each of 4,000 links is looked up in no time."""
    members = [member(f"{i}.png", b"x") for i in range(4000)]
    links = [member(f"l{i}.png", kind=tarfile.LNKTYPE, target=f"{i}.png") for i in range(4000)]
    start = time.process_time()
    assert len(open_archive(tar_of(tmp_path / "a.tar", members + links)).names()) == 8000
    assert time.process_time() - start < 4


TAR, ZIP = (
    tar({"train/a.png": b"a" * 700, "test/b.png": b"b"}),
    zipped({"train/a.png": b"a" * 70, "b.png": b"b"}),
)
PLAIN = gzip.decompress(TAR)


@settings(max_examples=150)
@given(
    st.sampled_from([(".tar", PLAIN), (".tar.gz", TAR), (".zip", ZIP)]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    st.integers(0, 10**6),
    st.booleans(),
)
def test_a_mutated_archive_is_read_or_refused_in_one_line(tmp_path_factory, kind, changes, end, truncated):
    ending, whole = kind
    content = bytearray(whole)
    for position, value in changes:
        content[position % len(content)] = value
    path = tmp_path_factory.getbasetemp() / f"mutated{ending}"
    path.write_bytes(content[: end % len(content)] if truncated else content)
    start = time.process_time()
    try:
        contents(path)
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017
    assert time.process_time() - start < 5
