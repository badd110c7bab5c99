"""A feature extractor for image sets without Inception weights: a classifier of the data set.

It is trained on the labels of the training split. Its features rank models of that data set. They are not comparable
with Inception's, and reports state this next to every value.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from lsgm_jax.arrays import Images, Key, Scalar
from lsgm_jax.data.pipeline import Data, Samples, padded_batches, split_labels, whole_split
from lsgm_jax.evaluation.cache import Arrays, Cache, digest
from lsgm_jax.evaluation.features import Bytes, Extractor, Features, fingerprint
from lsgm_jax.nn.layers import Conv, ResBlock, downsample, dropout, group_norm
from lsgm_jax.training.devices import OverDevices

FEATURES = 64
Logits = Float[Array, "batch classes"]
Labels = Int[Array, "batch"]
Outputs = tuple[Features, Logits]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """Hyperparameters of the training: AdamW with a cosine schedule from `learning_rate` to 0."""

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    dropout: float = 0.2


class Classifier(nn.Module):
    """Residual blocks that halve height and width down to 3 or less, then average pooling, features and logits."""

    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Images, *, deterministic: bool) -> Outputs:
        width = 16
        h = Conv(width, (3, 3))(x)
        while min(h.shape[1:3]) > 3:
            width = min(2 * width, 128)
            h = ResBlock(width, resample=downsample)(h, deterministic=deterministic)
        h = nn.swish(group_norm(h)).mean(axis=(1, 2))
        h = dropout(h, self.dropout, deterministic=deterministic)
        features = nn.swish(nn.Dense(FEATURES)(h))
        return features, nn.Dense(self.classes)(features)


def classifier_of(data: Data, folder: pathlib.Path, training: Training) -> Extractor:
    """Returns the classifier of the data set as an extractor, trained now or read from the cache in `folder`.

    Args:
        data: the data set, with labels.
        folder: folder of the cache.
        training: hyperparameters; each choice has its own file in the cache.

    Raises:
        DataError: if the data set has no labels.
    """
    of = {
        "training": dataclasses.asdict(training),
        "images": fingerprint(data, "train"),
        "labels": digest(split_labels(data, "train", limit=16)),
    }
    cache = Cache(folder / f"{_name(data)}-{digest(of)}.npz", of)
    _, trained = cache.read()
    if not trained:
        trained = train_classifier(data, training)
        cache.write(training.steps, trained)
    accuracy, classes = float(trained.pop("accuracy")), int(trained.pop("classes"))
    return Extractor(
        name=f"a classifier of {_name(data)} (test accuracy {100 * accuracy:.1f} %; not comparable with Inception's)",
        identity=digest(trained),
        width=FEATURES,
        params=unflatten_dict(trained, sep="/"),
        apply=functools.partial(_features, Classifier(classes)),
        classify=OverDevices(functools.partial(_classes, Classifier(classes))),
    )


def _name(data: Data) -> str:
    return pathlib.Path(data.source).name


def _features(net: Classifier, params: Any, images: Bytes) -> Features:
    features, _ = _apply(net, params, images.astype(jnp.float32) / 127.5 - 1.0)
    return features


def _classes(net: Classifier, params: Any, images: Bytes) -> Labels:
    _, logits = _apply(net, params, images.astype(jnp.float32) / 127.5 - 1.0)
    return logits.argmax(axis=-1)


def _apply(net: Classifier, params: Any, x: Images) -> Outputs:
    return cast(Outputs, net.apply({"params": params}, x, deterministic=True))


def train_classifier(data: Data, training: Training) -> Arrays:
    """Returns the parameters by path, together with "accuracy" on the test split and the number of "classes"."""
    labels = split_labels(data, "train")
    net = Classifier(int(labels.max()) + 1, training.dropout)
    params = fit(net, data.open("train"), labels, training)
    # Rounding may differ between processes, but all of them must use the same classifier.
    params = multihost_utils.broadcast_one_to_all(params) if jax.process_count() > 1 else params
    test_accuracy = accuracy(net, params, whole_split(data, "test"), split_labels(data, "test"))
    paths = cast(Arrays, flatten_dict(jax.tree.map(np.asarray, params), sep="/"))
    return {**paths, "accuracy": np.array(test_accuracy), "classes": np.array(net.classes)}


def fit(net: Classifier, samples: Samples, labels: np.ndarray, training: Training) -> Any:
    """Trains the parameters on the cross entropy of the labels; deterministic."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    rate = optax.cosine_decay_schedule(training.learning_rate, training.steps)
    optimiser = optax.adamw(rate, weight_decay=training.weight_decay)
    example = jnp.asarray(samples.batch(np.arange(1))["x"])
    params = jax.jit(lambda key: net.init(key, example, deterministic=True))(key)["params"]
    state, step = optimiser.init(params), _make_step(net, optimiser)
    for number in tqdm(range(training.steps), desc="classifier", leave=False):
        rows = rng.integers(0, len(samples), training.batch_size)
        x = samples.batch(rows, rng)["x"]
        params, state = step(params, state, x, labels[rows], jax.random.fold_in(key, number))
    return params


def _make_step(net: Classifier, optimiser: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    def loss(params: Any, x: Images, labels: Labels, key: Key) -> Scalar:
        rngs = {"dropout": key}
        _, logits = cast(Outputs, net.apply({"params": params}, x, deterministic=False, rngs=rngs))
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def step(params: Any, state: Any, x: Images, labels: Labels, key: Key) -> tuple[Any, Any]:
        gradient = jax.grad(loss)(params, x, labels, key)
        updates, state = optimiser.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    return step


def accuracy(net: Classifier, params: Any, x: np.ndarray, labels: np.ndarray) -> float:
    """Computes the share of samples whose label has the largest logit."""
    classify = jax.jit(lambda params, x: _apply(net, params, x)[1].argmax(axis=-1))
    predicted = [np.asarray(classify(params, rows))[:count] for rows, count in padded_batches(x, 128)]
    return float((np.concatenate(predicted) == labels).mean())
