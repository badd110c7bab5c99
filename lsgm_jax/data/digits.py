"""The 1,797 handwritten digits of scikit-learn as a TFDS data set.

The images have 8 x 8 pixels and 17 grey levels (0 to 16), stored as 8-bit PNG; `pixels.quantise(..., levels=17)`
recovers the levels exactly. Nothing is downloaded.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

# The file is ordered by writer; a fixed shuffle mixes the writers.
SPLITS = {"train": slice(0, 1437), "validation": slice(1437, 1557), "test": slice(1557, 1797)}
SHUFFLE_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """Optical recognition of handwritten digits (Alpaydin and Kaynak 1998), the part in scikit-learn."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="1,797 handwritten digits, 8 x 8 pixels, 17 grey levels.",
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            citation="E. Alpaydin and C. Kaynak. Optical Recognition of Handwritten Digits. UCI, 1998.",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        from sklearn.datasets import load_digits

        digits: Any = load_digits()
        order = np.random.default_rng(SHUFFLE_SEED).permutation(len(digits.target))
        images = np.round(digits.images[order] * (255 / 16)).astype(np.uint8)
        labels = digits.target[order]
        return {name: self._generate_examples(images[part], labels[part]) for name, part in SPLITS.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict]]:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            # TFDS needs TensorFlow to encode an array, but not to store encoded bytes.
            png = io.BytesIO()
            Image.fromarray(image).save(png, format="PNG")
            png.seek(0)
            yield index, {"image": png, "label": int(label)}
