"""Conditions: what is known of a data set's samples, and what users ask for.

An `Asked` gives the conditions of any rows of the samples that are to be drawn, so that many need not be held at once.
"""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Int

from lsgm_jax.build import build
from lsgm_jax.data.errors import DataError
from lsgm_jax.data.pipeline import class_names, split_captions, split_labels, whole_split
from lsgm_jax.data.words import Tokenizer
from lsgm_jax.models.bound import Batch
from lsgm_jax.models.conditional import Condition, Labels, Texts
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.model import Model
from lsgm_jax.schema import Config, ConfigError, did_you_mean

VOCABULARY = "vocabulary.txt"  # in a run's folder
Rows = Int[np.ndarray, "rows"]
Asked = Callable[[Rows], Condition]


def read_split(config: Config, workdir: pathlib.Path, split: str, limit: int | None = None) -> Batch:
    """All samples of a split, or the first ones, with their conditions; host arrays.

    Raises:
        ConfigError: as `split_conditions`.
        DataError: as well.
    """
    x = whole_split(build("data", config), split, limit=limit)
    return Batch(x, split_conditions(config, workdir, split, limit))


def split_conditions(
    config: Config, workdir: pathlib.Path, split: str, limit: int | None = None
) -> np.ndarray | None:
    """The conditions of a split's samples, [n, ...]; None for a model of none, or of what it draws from images.

    Args:
        workdir: of the run, whose vocabulary texts are read with.

    Raises:
        ConfigError: if the data have others than the model.
        DataError: if the data have none.
    """
    data, conditioning = build("data", config), build("conditioning", config)
    if isinstance(conditioning, Texts):
        captions = split_captions(data, split, limit)
        return read_tokenizer(conditioning, workdir).encode(captions, conditioning.length, cut=True)
    if not isinstance(conditioning, Labels):
        return None
    labels = split_labels(data, split, limit)
    if labels.max() >= conditioning.classes:
        raise ConfigError(
            f"config.conditioning.classes={conditioning.classes}: {data.source} has labels up to {labels.max()}"
        )
    return labels


def prepare_vocabulary(config: Config, workdir: pathlib.Path) -> None:
    """Leaves the vocabulary of texts in the run's folder: that of the config, or one made of the training captions.

    Raises:
        ConfigError: if it has more pieces than the config says, or another empty text.
        DataError: if there are no captions, or the file is no vocabulary.
    """
    conditioning = build("conditioning", config)
    if not isinstance(conditioning, Texts) or (workdir / VOCABULARY).exists():
        return
    if conditioning.vocabulary:
        tokenizer = Tokenizer.read(pathlib.Path(conditioning.vocabulary).expanduser())
    else:
        tokenizer = Tokenizer.train(split_captions(build("data", config), "train"), conditioning.pieces)
    if tokenizer.pieces > conditioning.pieces:
        raise ConfigError(
            f"config.conditioning.pieces={conditioning.pieces}: {conditioning.vocabulary} has {tokenizer.pieces}"
        )
    empty = tuple(tokenizer.empty(len(conditioning.empty)).tolist())
    if empty != conditioning.empty:
        raise ConfigError(f"config.conditioning.empty={conditioning.empty}: with this vocabulary it is {empty}")
    tokenizer.write(workdir / VOCABULARY)


def read_tokenizer(conditioning: Texts, workdir: pathlib.Path) -> Tokenizer:
    """Of a run.

    Raises:
        DataError: if its folder has lost the vocabulary.
    """
    tokenizer = Tokenizer.read(workdir / VOCABULARY)
    if tokenizer.pieces > conditioning.pieces:
        raise DataError(f"{workdir / VOCABULARY} has {tokenizer.pieces} pieces, the model {conditioning.pieces}")
    return tokenizer


# What is asked for


def ask(
    config: Config,
    workdir: pathlib.Path,
    model: Model,
    count: int,
    *,
    label: str | None = None,
    prompt: str | None = None,
) -> Asked:
    """The conditions of `count` samples: the label or the prompt, or else all there are, in their order.

    So without being asked, classes get as many samples each, texts are those of the test split, and what is to be
    completed are its images. A model of no conditions has None.

    Args:
        label: number or name of a class, or several with commas between, which take turns.

    Raises:
        ConfigError: for a label or a prompt that the model does not know.
        DataError: for a prompt that is too long.
    """
    conditioning = build("conditioning", config)
    _refuse(config, "label", label, isinstance(conditioning, Labels))
    _refuse(config, "prompt", prompt, isinstance(conditioning, Texts))
    if isinstance(conditioning, Labels):
        if label is None:
            return lambda rows: (rows * conditioning.classes // count).astype(np.int32)
        return _in_turns(_numbers(config, label, conditioning.classes))
    if isinstance(conditioning, Texts):
        if prompt is None:
            return _in_turns(split_conditions(config, workdir, "test", count))
        return _in_turns(read_tokenizer(conditioning, workdir).encode([prompt], conditioning.length))
    if isinstance(model, LDM) and model.task is not None:
        return _completions(config, model)
    return lambda rows: None


def _in_turns(conditions: np.ndarray | None) -> Asked:
    assert conditions is not None
    return lambda rows: conditions[rows % len(conditions)]


def _refuse(config: Config, option: str, value: str | None, fits: bool) -> None:
    if value is not None and not fits:
        raise ConfigError(
            f"--{option}={value}: this model's samples have no {option}, config.conditioning.name is "
            f"{config.conditioning.name!r}"
        )


def _numbers(config: Config, label: str, classes: int) -> np.ndarray:
    """The classes that a `--label` names."""
    parts = [part.strip() for part in label.split(",")]
    names = [] if all(part.isdigit() for part in parts) else class_names(build("data", config)) or []
    numbers = [int(part) if part.isdigit() else _find(part, names, classes) for part in parts]
    for number in numbers:
        if number >= classes:
            raise ConfigError(f"--label={number}: there are the classes 0 to {classes - 1}")
    return np.asarray(numbers, np.int32)


def _find(name: str, names: list[str], classes: int) -> int:
    if name not in names:
        known = f"the classes are {', '.join(names)}{did_you_mean(name, names)}" if names else "classes have no names"
        raise ConfigError(f"--label={name}: {known}; give a number from 0 to {classes - 1}, or a name")
    return names.index(name)


def _completions(config: Config, model: LDM) -> Asked:
    """What is known of the images of the test split."""
    samples, task = build("data", config).open("test", decode=False), model.task
    assert task is not None

    def conditions(rows: Rows) -> Condition:
        x = samples.batch(rows % len(samples))["x"]
        return jax.tree.map(np.asarray, task.draw(jax.random.key(int(rows[0])), x))

    return conditions
