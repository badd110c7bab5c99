"""Storage of prepared data sets: a TFDS builder with one configuration per set.

The sets lie in `data_dir/prepared/NAME/1.0.0`, apart from TFDS's own sets in `data_dir/NAME/VERSION`.
"""

import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from lsgm_jax.data.readers.contents import Example
from lsgm_jax.data.sources import TEXT_FEATURES, VERSION


@dataclasses.dataclass(eq=False, kw_only=True)
class PreparedConfig(tfds.core.BuilderConfig):
    """The name of a set, and functions that yield its images.

    Attributes:
        image_shape: (height, width, channels); None where it differs between images.
        classes: names of the labels; empty if there are none.
        captioned: whether images have texts.
        splits: by split, a function that yields the images as encoded files.
        record: content of metadata.json, read after all images are written.
    """

    image_shape: tuple[int | None, int | None, int]
    classes: Sequence[str]
    captioned: bool
    splits: Mapping[str, Callable[[], Iterator[Example]]]
    record: dict[str, Any]


class Prepared(tfds.core.GeneratorBasedBuilder):
    """A data set made by `lsgm data prepare`, in the order of the source."""

    VERSION = tfds.core.Version(VERSION)

    def _info(self) -> tfds.core.DatasetInfo:
        config: Any = self.builder_config
        features: dict[str, Any] = {"image": tfds.features.Image(shape=config.image_shape)}
        if config.classes:
            features["label"] = tfds.features.ClassLabel(names=list(config.classes))
        if config.captioned:
            features[TEXT_FEATURES[0]] = tfds.features.Sequence(tfds.features.Text())
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{config.name}, prepared by lsgm-jax from files of its user.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(config.record),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        config: Any = self.builder_config
        return {split: self._generate_examples(read) for split, read in config.splits.items()}

    def _generate_examples(self, read: Callable[[], Iterator[Example]]) -> Iterator[tuple[int, dict]]:
        config: Any = self.builder_config
        for index, example in enumerate(read()):
            assert isinstance(example.image, bytes)
            features: dict[str, Any] = {"image": io.BytesIO(example.image)}
            if example.label is not None:
                features["label"] = example.label
            if config.captioned:
                features[TEXT_FEATURES[0]] = example.captions
            yield index, features
