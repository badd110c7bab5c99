"""Conditions of a data set's samples, and the conditions that users request.

A `ConditionRequest` gives the conditions of any rows of the samples that are to be drawn, so that many need not be held
at once.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lsgm_jax.arrays import Condition
from lsgm_jax.conditioning.class_labels import described, find_class
from lsgm_jax.conditioning.images import Task
from lsgm_jax.conditioning.protocol import Conditioning
from lsgm_jax.data.pipeline import (
    Data,
    all_captions,
    class_names,
    split_captions,
    split_labels,
    whole_split,
)
from lsgm_jax.data.survey import check_classes, read_survey
from lsgm_jax.data.tokenizer import EncodedCaptions, Tokenizer, encode_captions
from lsgm_jax.errors import ConfigError, DataError
from lsgm_jax.objectives.bound import Batch

VOCABULARY = "vocabulary.txt"  # in the folder of a run
Rows = Int[np.ndarray, "rows"]
ConditionRequest = Callable[[Rows], Condition]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of a run's samples.

    Attributes:
        conditioning: of the config: of labels, of texts, of images, or none.
        data: the data set.
        tokenizer: of texts; None for other conditions.
        began_with: names of the classes that the data had when the run began, if it has kept them.
    """

    conditioning: Any
    data: Data
    tokenizer: Tokenizer | None
    began_with: Sequence[str] | None = None

    @classmethod
    def of_run(cls, conditioning: Any, data: Data, workdir: pathlib.Path) -> "Conditions":
        """Returns the conditions of a trained run.

        Raises:
            DataError: if its folder has lost the vocabulary of texts.
        """
        texts = _source(conditioning) == "captions"
        began = read_survey(workdir)
        return cls(
            conditioning,
            data,
            Tokenizer.read(workdir / VOCABULARY) if texts else None,
            None if began is None else tuple(began.classes),
        )

    @classmethod
    def for_training(cls, conditioning: Any, data: Data, workdir: pathlib.Path) -> "Conditions":
        """Returns the conditions of a run that begins or resumes; writes nothing.

        Raises:
            ConfigError: if the vocabulary is another than the config says.
            DataError: if there is no vocabulary, and no captions to train one on.
        """
        if _source(conditioning) != "captions" or (workdir / VOCABULARY).exists():
            return cls.of_run(conditioning, data, workdir)
        if conditioning.vocabulary:
            tokenizer = Tokenizer.read(pathlib.Path(conditioning.vocabulary).expanduser())
        else:
            tokenizer = Tokenizer.train(split_captions(data, "train"), conditioning.pieces)
        if tokenizer.pieces > conditioning.pieces:
            raise ConfigError(
                f"config.conditioning.pieces={conditioning.pieces}: {conditioning.vocabulary} has {tokenizer.pieces}"
            )
        empty = tuple(tokenizer.empty(len(conditioning.empty)).tolist())
        if empty != conditioning.empty:
            raise ConfigError(
                f"config.conditioning.empty={conditioning.empty}: with this vocabulary it is {empty}"
            )
        return cls(conditioning, data, tokenizer)

    def save(self, workdir: pathlib.Path) -> None:
        """Writes into the run's folder what `of_run` needs."""
        if self.tokenizer is not None:
            self.tokenizer.write(workdir / VOCABULARY)

    def batch(self, split: str, limit: int | None = None) -> Batch:
        """Returns all samples of a split, or the first ones, with their conditions; host arrays."""
        x: Any = whole_split(self.data, split, limit=limit)
        return Batch(x, self.of_split(split, limit))

    def for_batches(self, split: str) -> np.ndarray | EncodedCaptions | None:
        """Returns the conditions of a split as `of_split` does, but with all texts of a sample; a batch draws one."""
        if self.tokenizer is None:
            return self.of_split(split)
        return encode_captions(all_captions(self.data, split), self.tokenizer, self.conditioning.length)

    def of_split(self, split: str, limit: int | None = None) -> np.ndarray | None:
        """Returns the conditions of a split's samples, [n, ...]; None where they do not come from the data set.

        Raises:
            ConfigError: if the data have others than the model.
            DataError: if the data have none.
        """
        conditioning = self.conditioning
        if self.tokenizer is not None:
            return self.tokenizer.encode(
                split_captions(self.data, split, limit), conditioning.length, cut=True
            )
        if not self.of_labels:
            return None
        if self.began_with is not None:
            check_classes(self.data, class_names(self.data) or (), self.began_with)
        labels = split_labels(self.data, split, limit)
        if labels.max() >= conditioning.classes:
            raise ConfigError(
                f"config.conditioning.classes={conditioning.classes}: "
                f"{self.data.source} has labels up to {labels.max()}"
            )
        return labels

    @property
    def of_labels(self) -> bool:
        """Whether conditions are class labels."""
        return _source(self.conditioning) == "labels"

    def request(self, count: int, *, label: str | None = None, prompt: str | None = None) -> ConditionRequest:
        """Returns the conditions of `count` samples: the label or the prompt, or else all there are, in their order.

        Without a request, classes get as many samples each, texts are those of the test split, and images to restore
        are those of the test split. A model without conditions has None.

        Args:
            label: name or number of a class (see `find_class`), or several with commas between, which take turns.

        Raises:
            ConfigError: for a label or a prompt that the model does not know.
            DataError: for a prompt that is too long.
        """
        conditioning = self.conditioning
        self._refuse("label", label, self.of_labels)
        self._refuse("prompt", prompt, self.tokenizer is not None)
        if self.tokenizer is not None:
            if prompt is not None:
                return _in_turns(self.tokenizer.encode([prompt], conditioning.length))
            return _in_turns(self.of_split("test", count))
        if self.of_labels:
            if label is not None:
                return _in_turns(self._classes(label, conditioning.classes))
            return lambda rows: (rows * conditioning.classes // count).astype(np.int32)
        if isinstance(conditioning, Task):
            return self._restorations(conditioning)
        return lambda rows: None

    def _refuse(self, option: str, value: str | None, fits: bool) -> None:
        if value is not None and not fits:
            raise ConfigError(
                f"--{option}={value}: this model's samples have no {option}, "
                f"config.conditioning is of {type(self.conditioning).__name__!r}"
            )

    def _classes(self, label: str, classes: int) -> np.ndarray:
        """The classes that a `--label` names."""
        names = self._names(label)
        return np.asarray([find_class(part.strip(), names, classes) for part in label.split(",")], np.int32)

    def drawn(self, label: str | None) -> str | None:
        """Returns a line on the classes that `request` draws for a `--label`; None without one."""
        if label is None or not self.of_labels:
            return None
        found = dict.fromkeys(self._classes(label, self.conditioning.classes).tolist())
        return "class " + ", ".join(described(index, self._names(label)) for index in found)

    def _names(self, label: str) -> Sequence[str]:
        """The names of the classes. A converted run has no data: it has none then, and takes numbers alone."""
        try:
            return self.class_names
        except DataError:
            if not all(part.strip().isdecimal() for part in label.split(",")):
                raise
            return ()

    @functools.cached_property
    def class_names(self) -> Sequence[str]:
        """The names of the classes when the run began; empty if they have none."""
        return self.began_with if self.began_with is not None else class_names(self.data) or ()

    def _restorations(self, task: Task) -> ConditionRequest:
        """The known parts of the images of the test split."""
        samples = self.data.open("test", decode=False)

        def conditions(rows: Rows) -> Condition:
            x = samples.batch(rows % len(samples))["x"]
            return jax.tree.map(np.asarray, task.draw(jax.random.key(int(rows[0])), jnp.asarray(x)))

        return conditions


def _source(conditioning: Conditioning | Task) -> str | None:
    """Where conditions come from; a task draws them from images."""
    return getattr(conditioning, "source", None)


def _in_turns(conditions: np.ndarray | None) -> ConditionRequest:
    assert conditions is not None
    return lambda rows: conditions[rows % len(conditions)]
