"""Captions from every source come in the order of the images, prepared or not."""

import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds

from lsgm_jax.data.pipeline import all_captions, class_names, split_captions, split_labels, training_batches
from lsgm_jax.data.points import PointSpec
from lsgm_jax.data.prepare import Job, prepare
from lsgm_jax.data.sources import FolderSource
from lsgm_jax.data.spec import DataSpec
from lsgm_jax.errors import DataError
from tests.data import published
from tests.data.published import grey, labels, write

PNG = published.image_file(grey(1, side=4)[0])
SPLITS = ("train", "validation", "test")


def spec_of(source, **fields):
    return DataSpec(**dict(source=str(source), image_shape=(4, 4, 1), batch_size=4) | fields)


def listed(entries):
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()


def captioned():
    """The files of a folder of 40 images with one to three texts, next to them or in lists of two folders."""
    files, expected = {}, {}
    for i in range(40):
        name = f"{'ab'[i % 2]}/{i}.png"
        files[name], expected[name] = PNG, tuple(f"image {i}, text {k}" for k in range(1 + i % 3))
        if i % 4 < 2:
            files[f"{name[:-4]}.txt"] = "\r\n\n".join([*expected[name], " "]).encode()
    for folder in "ab":
        mine = [name for name in expected if name.startswith(folder) and f"{name[:-4]}.txt" not in files]
        files[f"{folder}/metadata.jsonl"] = listed(
            {"file_name": f"../{folder}/{name[2:]}", "text": texts[0] if len(texts) == 1 else texts, "id": 7}
            for name, texts in ((name, list(expected[name])) for name in mine)
        )
    return files, expected


@pytest.fixture
def folder(tmp_path):
    files, expected = captioned()
    for name, content in files.items():
        write(tmp_path / "files" / name, content)
    return tmp_path / "files", expected


def test_texts_of_a_folder_are_those_of_its_images(folder):
    """In the order of its images, in every split; `split_captions` takes the first text of each image."""
    source, expected = folder
    for split in SPLITS:
        names = [path.relative_to(source).as_posix() for path in FolderSource(source, split).files]
        assert all_captions(spec_of(source), split) == [expected[name] for name in names]
        assert split_captions(spec_of(source), split) == [expected[name][0] for name in names]
        assert split_captions(spec_of(source), split, limit=2) == [expected[name][0] for name in names[:2]]


@pytest.mark.parametrize("form", ["folder", "zip", "tar.gz"])
def test_preparing_keeps_the_texts(folder, tmp_path, form):
    source, _ = folder
    if form != "folder":
        members = {f"packed/{name}": content for name, content in captioned()[0].items()}
        pack = published.zipped if form == "zip" else published.tar
        write(tmp_path / f"p.{form}", pack(members))
    given = source if form == "folder" else tmp_path / f"p.{form}"
    prepare(Job(kind="folder", source=given, data_dir=tmp_path / "data", name="mine"))
    prepared = spec_of("mine", data_dir=str(tmp_path / "data"))
    for split in SPLITS:
        assert all_captions(prepared, split) == all_captions(spec_of(source), split)
        np.testing.assert_array_equal(split_labels(prepared, split), split_labels(spec_of(source), split))
    stored = tfds.builder_from_directory(tmp_path / "data" / "prepared" / "mine" / "1.0.0")
    assert [text.decode() for text in stored.as_data_source("train")[0]["captions"]] == list(
        all_captions(spec_of(source), "train", limit=1)[0]
    )


@pytest.mark.parametrize("name", ["a/0.txt", "a/metadata.jsonl"])
def test_changed_texts_are_refused_as_other_files(folder, tmp_path, name):
    source, _ = folder
    job = Job(kind="folder", source=source, data_dir=tmp_path / "data", name="mine")
    prepare(job)
    assert prepare(job).was_there
    (source / name).write_bytes((source / name).read_bytes() + b"\n")
    with pytest.raises(DataError, match="was made from other files"):
        prepare(job)


def test_an_empty_text_is_a_text(tmp_path):
    for name in "abc":
        write(tmp_path / "train" / f"{name}.png", PNG)
    write(tmp_path / "train" / "a.txt", b"\n")
    (tmp_path / "train" / "b.txt").write_text("\ufeffAn apple\n", encoding="utf-8")
    write(tmp_path / "train" / "metadata.jsonl", listed([{"file_name": "c.png", "text": ""}]))
    texts = dict(
        zip(FolderSource(tmp_path, "train").files, split_captions(spec_of(tmp_path), "train"), strict=True)
    )
    assert {path.stem: text for path, text in texts.items()} == {"a": "", "b": "An apple", "c": ""}


def test_an_image_without_a_text_is_named_when_texts_are_read(tmp_path):
    """Not before: such a folder can be prepared and trained on, also with lists that hold other entries."""
    for i in range(6):
        write(tmp_path / "files" / "train" / f"{i}.png", PNG)
        if i != 3:
            write(tmp_path / "files" / "train" / f"{i}.txt", b"a text")
    write(
        tmp_path / "files" / "metadata.jsonl", listed([{"file_name": "train/3.png"}, {"text": "none"}, [1]])
    )
    job = Job(kind="folder", source=tmp_path / "files", data_dir=tmp_path / "data", name="mine")
    prepare(job)
    write(tmp_path / "files" / "metadata.jsonl", listed([{"file_name": "train/3.png", "score": 2}]))
    assert prepare(job).was_there
    folder, prepared = spec_of(job.source), spec_of("mine", data_dir=str(job.data_dir))
    for spec in (folder, prepared):
        assert next(training_batches(spec.open("train"), 0))["x"].shape == (4, 4, 4, 1)
        assert split_captions(spec, "train", limit=3) == ["a text"] * 3
    with pytest.raises(
        DataError, match=r"/train/3\.png has no text, though others have: write 3\.txt next to it$"
    ):
        split_captions(folder, "train")
    place = [path.stem for path in FolderSource(job.source, "train").files].index("3")
    with pytest.raises(
        DataError, match=rf"image {place} of 'train' in mine has no captions: set config.data.splits"
    ):
        split_captions(prepared, "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("0.txt", b"\xff\xfea\x00", r"train/0\.txt in .* is no text in UTF-8 \(.*\): save it as such"),
        (
            "metadata.jsonl",
            b'\n{"file_name": "0.png", ',
            r"^line 2 of train/metadata.jsonl in .* is no JSON \(.*\): fix",
        ),
        (
            "metadata.jsonl",
            listed([{"file_name": "0.png", "text": 3}]),
            "^line 1 of .* a list of texts",
        ),
        ("metadata.jsonl", listed([{"file_name": None, "text": "a"}]), "^line 1 .* needs a name"),
    ],
)
def test_damaged_texts_are_named_in_one_line(tmp_path, name, content, message):
    write(tmp_path / "train" / "0.png", PNG)
    write(tmp_path / "train" / name, content)
    with pytest.raises(DataError, match=message) as error:
        split_captions(spec_of(tmp_path), "train")
    assert "\n" not in str(error.value)


# TFDS


class Texts(tfds.core.GeneratorBasedBuilder):
    """Images with a label and, if `feature` has a name, the texts in `stored`."""

    VERSION = tfds.core.Version("1.0.0")
    feature: tuple = ()
    stored: tuple = ()

    def _info(self):
        name, kind = self.feature
        named = {} if name is None else {name: kind}
        image = tfds.features.Image(shape=(4, 4, 1))
        label = tfds.features.ClassLabel(names=["sea_lion", "dog"])
        features = tfds.features.FeaturesDict({"image": image, "label": label, **named})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for index, stored in enumerate(self.stored):
            named = {} if self.feature[0] is None else {self.feature[0]: stored}
            yield index, {"image": io.BytesIO(PNG), "label": -1 if stored is None else index % 2, **named}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A function that makes a TFDS data set with the given feature and its values."""

    def make(name, kind, *values):
        monkeypatch.setattr(Texts, "feature", (name, kind))
        monkeypatch.setattr(Texts, "stored", values)
        Texts(data_dir=tmp_path, file_format="array_record").download_and_prepare()
        return spec_of("texts", data_dir=str(tmp_path))

    return make


def coco(*texts):
    return [{"id": index, "text": text} for index, text in enumerate(texts)]


TEXT, SEVERAL = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
COCO = tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()})


@pytest.mark.parametrize(
    ("name", "kind", "values", "expected"),
    [
        ("caption", TEXT, ["ein Hündchen", ""], [("ein Hündchen",), ("",)]),
        ("text", TEXT, ["one\ntext", "b"], [("one\ntext",), ("b",)]),
        ("captions", SEVERAL, [["a"], ["b", "c"]], [("a",), ("b", "c")]),
        ("captions", COCO, [coco("a"), coco("b", "c")], [("a",), ("b", "c")]),
        # A feature that holds no texts, or has another name, is ignored.
        (
            "text",
            tfds.features.Tensor(shape=(), dtype=np.int32),
            [1, 2],
            ["a photo of a sea lion", "a photo of a dog"],
        ),
        ("title", TEXT, ["a", "b"], ["a photo of a sea lion", "a photo of a dog"]),
    ],
)
def test_texts_of_tfds_are_found(stored, name, kind, values, expected):
    spec = stored(name, kind, *values)
    assert all_captions(spec, "train") == [(one,) if isinstance(one, str) else one for one in expected]


def test_images_that_tfds_has_no_text_of_are_named(stored):
    """Such as the test images of COCO."""
    spec = stored("captions", COCO, coco("a", "b"), [])
    assert split_captions(spec, "train", limit=1) == ["a"]
    with pytest.raises(
        DataError, match=r"image 1 of 'train' in texts has no captions: set config.data.splits"
    ):
        split_captions(spec, "train")


def test_an_unknown_label_makes_no_text(stored):
    """TFDS stores -1, which must not index the last class."""
    spec = stored(None, None, 0, None)
    assert split_captions(spec, "train", limit=1) == ["a photo of a sea lion"]
    with pytest.raises(DataError, match="texts has no texts"):
        split_captions(spec, "train")


# Names of classes


def test_names_of_folders_make_texts(tmp_path):
    for index in range(20):
        write(tmp_path / ["sea_lion", "dogs/hot_dog"][index % 2] / f"{index}.png", PNG)
    spec = spec_of(tmp_path)
    names = class_names(spec)
    assert names == ["dogs/hot_dog", "sea_lion"]
    texts = ["a photo of a dogs hot dog", "a photo of a sea lion"]
    for split in SPLITS:
        assert split_captions(spec, split) == [texts[label] for label in split_labels(spec, split)]


def test_digits_are_named_by_their_digit(data_dir, tmp_path):
    write(tmp_path / "t10k-images-idx3-ubyte", published.idx(grey(10)))
    write(tmp_path / "t10k-labels-idx1-ubyte", published.idx(labels(10)))
    prepare(Job(kind="mnist", source=tmp_path, data_dir=tmp_path / "data"))
    mnist = dict(source="mnist", data_dir=str(tmp_path / "data"), splits=("test",) * 3)
    for fields in (mnist, dict(source="digits", data_dir=str(data_dir))):
        spec = spec_of(**fields)
        expected = [f"a photo of a {label}" for label in split_labels(spec, "test")]
        assert split_captions(spec, "test") == expected
        assert class_names(spec) == [str(digit) for digit in range(10)]


def test_without_texts_and_classes_the_error_says_where_texts_can_be(tmp_path):
    for index in range(20):
        write(tmp_path / f"{index}.png", PNG)
    for spec in (spec_of(tmp_path), PointSpec(source="swiss_roll")):
        assert class_names(spec) is None
        with pytest.raises(DataError) as error:
            split_captions(spec, "train")
        assert str(error.value).startswith(f"{spec.source} has no texts: set config.data.source to")
        assert 'NAME.txt next to NAME.png, or "file_name" and "text" in metadata.jsonl' in str(error.value)
        assert "\n" not in str(error.value)
