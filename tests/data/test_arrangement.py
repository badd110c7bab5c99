"""Every tree of names has one meaning: each file is in one split or skipped, whatever form the names have."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsgm_jax.data.arrangement import SPLIT_OF_WORD, arrange, splits_by_folder
from lsgm_jax.data.names import components, summary, why_skipped
from lsgm_jax.errors import DataError, printable

SPLITS = {"train": 8, "validation": 2, "test": 3}


def tree(folders, classes=("cat", "dog")):
    """Names of three images in each class of each folder of a split."""
    return [f"{folder}/{name}/{i}.png" for folder in folders for name in classes for i in range(3)]


def meaning(names):
    """Returns {name: (split, class)}."""
    found = arrange(names, "it")
    return {
        name: (split, found.classes[found.labels[name]] if found.classes else None)
        for split, part in found.splits.items()
        for name in part
    }


PLAIN = tree(["train", "validation", "test"])


@pytest.mark.parametrize(
    "written",
    [
        lambda name: "./" + name,
        lambda name: "/" + name,
        lambda name: "set/" + name,
        lambda name: "set/deep/er/" + name,
        lambda name: "test/" + name,  # a folder around the splits may be called anything
        lambda name: name.replace("/", "\\"),
        lambda name: "C:\\set\\" + name.replace("/", "\\"),
        lambda name: name.replace("train", "Train").replace("validation", "Val").replace("test", "TEST"),
        lambda name: (
            name.replace("train", "training").replace("validation", "valid").replace("test", "testing")
        ),
        lambda name: (
            name.replace("train", "train2017").replace("validation", "dev").replace("test", "test_images")
        ),
        lambda name: (
            name.replace("train", "x_train_HR")
            .replace("validation", "x_eval_HR")
            .replace("test", "x_test_HR")
        ),
        lambda name: name.replace("train", "trains").replace("validation", "vals").replace("test", "tests"),
        lambda name: "/".join([name.split("/")[1], name.split("/")[0], name.split("/")[2]]),  # class/split
    ],
)
def test_a_tree_means_the_same_in_every_form(written):
    expected = meaning(PLAIN)
    assert set(expected.values()) == {(split, name) for split in SPLITS for name in ("cat", "dog")}
    assert meaning([written(name) for name in PLAIN]) == {written(n): m for n, m in expected.items()}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([*PLAIN, "preview.png"], "but preview.png and 0 more images lie in no such folder"),
        (["train/1.png", "test/1.png", "extra/2.png"], "'test' in it is named like a split .* extra/2.png"),
        (["test/1.png", "other/2.png"], "'test' in it is named like a split"),
        (["set/test/1.png", "set/images/2.png"], "'test' in it is named like a split"),
        (["a/train/1.png", "a/test/1.png", "b/1.png"], "named like a split .* b/1.png"),
        (["data/train/1.png", "data/test/1.png", "data/2.png"], "named like a split .* data/2.png"),
        (
            ["training_data/train/1.png", "training_data/test/1.png", "training_data/2.png"],
            "named like a split",
        ),
        (
            ["train/1.png", "training/2.png", "test/3.png"],
            "'train' and 'training' in it both name the split train",
        ),
        (["Train/1.png", "train/2.png"], "both name the split train"),
        (["trainA/1.png", "trainB/1.png", "testA/1.png"], "both name the split train"),
        (
            ["cats_train/1.png", "cats_test/1.png", "dogs_train/1.png", "dogs_test/2.png"],
            "both name the split",
        ),
    ],
)
def test_a_mixture_that_cannot_be_meant_is_refused(names, message):
    with pytest.raises(DataError, match=message):
        arrange(names, "it")


def test_files_beside_the_splits_that_are_no_images_do_not_matter():
    other = ["README.md", ".DS_Store", "__MACOSX/train/._1.png", "test/Thumbs.db", "SHA256SUMS", ".git/x.png"]
    found = arrange([*PLAIN, *other], "it")
    assert meaning([*PLAIN, *other]) == meaning(PLAIN)
    assert {file.name: file.reason for file in found.skipped} == {
        "README.md": ".md",
        ".DS_Store": "hidden",
        "__MACOSX/train/._1.png": "hidden",
        "test/Thumbs.db": "of the operating system",
        "SHA256SUMS": "without ending",
        ".git/x.png": "hidden",
    }
    assert summary(found.skipped) == (
        "6 files: 3 hidden, 1 .md, 1 without ending, 1 of the operating system; the first is .DS_Store"
    )


def test_classes_are_in_the_order_of_their_numbers():
    names = [f"{number}/x.png" for number in (10, 9, 1, 12, 2, 11, 100)]
    assert arrange(names, "it").classes == ["1", "2", "9", "10", "11", "12", "100"]
    assert arrange(["-1/a.png", "0.5/a.png", "0.25/a.png", "b/a.png"], "it").classes == [
        "-1",
        "0.25",
        "0.5",
        "b",
    ]
    assert arrange(["s2/c10/a.png", "s10/c1/a.png", "s2/c9/a.png"], "it").classes == [
        "s2/c9",
        "s2/c10",
        "s10/c1",
    ]


def test_a_folder_that_only_begins_like_a_split_is_a_class():
    found = arrange(["train_station/1.png", "bus_station/2.png", "testament/3.png", "trains/4.png"], "it")
    assert found.classes == ["bus_station", "testament", "train_station", "trains"]
    assert not found.by_folder


def test_names_that_are_no_utf8_are_shown_with_their_bytes():
    name = b"caf\xe9/1.png".decode("utf-8", "surrogateescape")
    found = arrange([name, "b/1.png"], "it")
    assert sorted(found.classes) == ["b", "caf\\xe9"]
    assert printable(name) == "caf\\xe9/1.png"
    assert printable("a\nb") == "a\\nb"
    assert arrange(["cafe\u0301/1.png", "caf\u00e9/2.png", "b/1.png"], "it").classes == ["b", "caf\u00e9"]


def test_one_image_under_two_names_counts_once():
    found = arrange(["./a.png", "a.png", "b.png"], "it")
    assert [file.reason for file in found.skipped] == ["another name of ./a.png"]
    assert sum(map(len, found.splits.values())) == 2


def test_files_of_any_kind_have_splits_by_folder():
    names = ["Train/10.tfrecords", "Train/9.tfrecords", "val/1.tfrecords"]
    assert splits_by_folder(names, "it") == {"train": [names[1], names[0]], "validation": names[2:]}
    assert splits_by_folder(["a/1.tfrecords"], "it") is None


PART = st.sampled_from(
    [
        *SPLIT_OF_WORD,
        "Train",
        "TEST",
        "Val",
        "train2017",
        "set",
        "1",
        "2",
        "10",
        "cat",
        ".x",
        "__MACOSX",
        "",
        ".",
        "..",
    ]
) | st.text(string.ascii_letters + string.digits + "_- .\u00e9\udce9\n", max_size=6)
FILE = st.builds("{}{}".format, PART, st.sampled_from([".png", ".JPG", ".txt", "", ".tif", ".npy"]))
NAME = st.builds(lambda folders, file: "/".join([*folders, file]), st.lists(PART, max_size=4), FILE)
NAMES = st.lists(NAME, max_size=12, unique_by=components)


def outcome(names):
    """Returns what `arrange` finds by place, or that it refuses."""
    try:
        found = meaning(names)
    except DataError:
        return None
    return {components(name): what for name, what in found.items()}


@given(NAMES, st.randoms())
def test_every_file_is_in_one_split_or_skipped(names, random):
    try:
        found = arrange(names, "it")
    except DataError:
        return
    placed = [name for part in found.splits.values() for name in part]
    assert sorted(placed + [file.name for file in found.skipped]) == sorted(names)
    assert not any(map(why_skipped, placed))
    assert set(found.labels) == (set(placed) if found.classes else set())
    random.shuffle(names)
    assert arrange(names, "it") == found


@given(NAMES)
def test_the_form_of_names_changes_nothing(names):
    expected = outcome(names)
    assert outcome([f"./{name}" for name in names]) == expected
    assert outcome([name.replace("/", "\\") for name in names]) == expected
    around = outcome([f"around/all/{'/'.join(components(name))}" for name in names])
    assert around == (expected and {("around", "all", *parts): what for parts, what in expected.items()})


@given(st.sampled_from(sorted(SPLIT_OF_WORD)), st.sampled_from(sorted(SPLIT_OF_WORD)), st.booleans())
def test_no_image_of_a_test_folder_is_trained_on(one, other, stray):
    names = [f"{one}/{i}.png" for i in range(9)] + [f"{other}/x{i}.png" for i in range(9)] + ["y.png"] * stray
    found = outcome(names)
    refused = stray or (one != other and SPLIT_OF_WORD[one] == SPLIT_OF_WORD[other])
    assert (found is None) == refused
    for parts, (split, _) in (found or {}).items():
        assert split == SPLIT_OF_WORD[parts[0]]
