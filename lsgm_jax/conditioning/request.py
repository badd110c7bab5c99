"""Conditions: what is known of a data set's samples, and what users ask for.

An `Asked` gives the conditions of any rows of the samples that are to be drawn, so that many need not be held at once.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lsgm_jax.config.registry import Config
from lsgm_jax.config.section import build
from lsgm_jax.data.pipeline import all_captions, class_names, split_captions, split_labels, whole_split
from lsgm_jax.data.tokenizer import EncodedCaptions, Tokenizer, encode_captions
from lsgm_jax.errors import ConfigError, did_you_mean
from lsgm_jax.models.conditional import Condition, Labels, Texts
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.model import Model
from lsgm_jax.models.tasks import Task
from lsgm_jax.objectives.bound import Batch

VOCABULARY = "vocabulary.txt"  # in a run's folder
Rows = Int[np.ndarray, "rows"]
Asked = Callable[[Rows], Condition]


@dataclasses.dataclass(frozen=True)
class Conditions:
    """The conditions of a run's model.

    Attributes:
        tokenizer: of texts; None if its conditions are others.
    """

    config: Config
    tokenizer: Tokenizer | None

    @classmethod
    def of_run(cls, config: Config, workdir: pathlib.Path) -> "Conditions":
        """Those of a run that has been trained.

        Raises:
            DataError: if its folder has lost the vocabulary of texts.
        """
        texts = isinstance(build("conditioning", config), Texts)
        return cls(config, Tokenizer.read(workdir / VOCABULARY) if texts else None)

    @classmethod
    def for_training(cls, config: Config, workdir: pathlib.Path) -> "Conditions":
        """Those of a run that is to begin, or to go on; writes nothing.

        Raises:
            ConfigError: if the vocabulary of the config is another than the config says.
            DataError: if there is no vocabulary, and no captions to make one of.
        """
        conditioning = build("conditioning", config)
        if not isinstance(conditioning, Texts) or (workdir / VOCABULARY).exists():
            return cls.of_run(config, workdir)
        if conditioning.vocabulary:
            tokenizer = Tokenizer.read(pathlib.Path(conditioning.vocabulary).expanduser())
        else:
            captions = split_captions(build("data", config), "train")
            tokenizer = Tokenizer.train(captions, conditioning.pieces)
        if tokenizer.pieces > conditioning.pieces:
            raise ConfigError(
                f"config.conditioning.pieces={conditioning.pieces}: {conditioning.vocabulary} has {tokenizer.pieces}"
            )
        empty = tuple(tokenizer.empty(len(conditioning.empty)).tolist())
        if empty != conditioning.empty:
            raise ConfigError(
                f"config.conditioning.empty={conditioning.empty}: with this vocabulary it is {empty}"
            )
        return cls(config, tokenizer)

    def save(self, workdir: pathlib.Path) -> None:
        """Leaves in the run's folder what `of_run` needs."""
        if self.tokenizer is not None:
            self.tokenizer.write(workdir / VOCABULARY)

    def batch(self, split: str, limit: int | None = None) -> Batch:
        """All samples of a split, or the first ones, with their conditions; host arrays."""
        x: Any = whole_split(build("data", self.config), split, limit=limit)
        return Batch(x, self.of_split(split, limit))

    def for_batches(self, split: str) -> np.ndarray | EncodedCaptions | None:
        """As `of_split`, but with all texts of a sample, of which each batch draws one."""
        if self.tokenizer is None:
            return self.of_split(split)
        captions = all_captions(build("data", self.config), split)
        return encode_captions(captions, self.tokenizer, build("conditioning", self.config).length)

    def of_split(self, split: str, limit: int | None = None) -> np.ndarray | None:
        """Those of a split's samples, [n, ...]; None for a model of none, or of what it draws from images.

        Raises:
            ConfigError: if the data have others than the model.
            DataError: if the data have none.
        """
        data, conditioning = build("data", self.config), build("conditioning", self.config)
        if self.tokenizer is not None:
            return self.tokenizer.encode(split_captions(data, split, limit), conditioning.length, cut=True)
        if not isinstance(conditioning, Labels):
            return None
        labels = split_labels(data, split, limit)
        if labels.max() >= conditioning.classes:
            raise ConfigError(
                f"config.conditioning.classes={conditioning.classes}: {data.source} has labels up to {labels.max()}"
            )
        return labels

    def ask(self, model: Model, count: int, *, label: str | None = None, prompt: str | None = None) -> Asked:
        """The conditions of `count` samples: the label or the prompt, or else all there are, in their order.

        So without being asked, classes get as many samples each, texts are those of the test split, and what is to be
        completed are its images. A model of no conditions has None.

        Args:
            label: number or name of a class, or several with commas between, which take turns.

        Raises:
            ConfigError: for a label or a prompt that the model does not know.
            DataError: for a prompt that is too long.
        """
        conditioning = build("conditioning", self.config)
        self._refuse("label", label, isinstance(conditioning, Labels))
        self._refuse("prompt", prompt, self.tokenizer is not None)
        if self.tokenizer is not None:
            if prompt is not None:
                return _in_turns(self.tokenizer.encode([prompt], conditioning.length))
            return _in_turns(self.of_split("test", count))
        if isinstance(conditioning, Labels):
            if label is not None:
                return _in_turns(self._classes(label, conditioning.classes))
            return lambda rows: (rows * conditioning.classes // count).astype(np.int32)
        if isinstance(model, LDM) and model.task is not None:
            return self._completions(model.task)
        return lambda rows: None

    def _refuse(self, option: str, value: str | None, fits: bool) -> None:
        if value is not None and not fits:
            raise ConfigError(
                f"--{option}={value}: this model's samples have no {option}, "
                f"config.conditioning.name is {self.config.conditioning.name!r}"
            )

    def _classes(self, label: str, classes: int) -> np.ndarray:
        """The classes that a `--label` names."""
        parts = [part.strip() for part in label.split(",")]
        numbered = all(part.isdigit() for part in parts)
        names = [] if numbered else class_names(build("data", self.config)) or []
        numbers = [int(part) if part.isdigit() else _find(part, names, classes) for part in parts]
        for number in numbers:
            if number >= classes:
                raise ConfigError(f"--label={number}: there are the classes 0 to {classes - 1}")
        return np.asarray(numbers, np.int32)

    def _completions(self, task: Task) -> Asked:
        """What is known of the images of the test split."""
        samples = build("data", self.config).open("test", decode=False)

        def conditions(rows: Rows) -> Condition:
            x = samples.batch(rows % len(samples))["x"]
            return jax.tree.map(np.asarray, task.draw(jax.random.key(int(rows[0])), jnp.asarray(x)))

        return conditions


def _in_turns(conditions: np.ndarray | None) -> Asked:
    assert conditions is not None
    return lambda rows: conditions[rows % len(conditions)]


def _find(name: str, names: list[str], classes: int) -> int:
    if name in names:
        return names.index(name)
    known = (
        f"the classes are {', '.join(names)}{did_you_mean(name, names)}" if names else "classes have no names"
    )
    raise ConfigError(f"--label={name}: {known}; give a number from 0 to {classes - 1}, or a name")
