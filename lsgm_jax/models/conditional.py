"""What samples are to be like, on its way to the network.

A condition (labels, word pieces, maps) has a row per sample. A `Conditioning` makes of it the `Context` that score
networks take, and knows the condition that asks for nothing, which training puts in the place of some
so that sampling can be told to mind the rest (`guide`).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Bool, Int

from lsgm_jax.arrays import EpsNet, Key, Latents, State, Times, coordinates
from lsgm_jax.conditioning.labels import ClassEmbedding
from lsgm_jax.conditioning.text import TextEncoder, WordPieces
from lsgm_jax.nn.layers import Maps, Tokens
from lsgm_jax.nn.network import Params
from lsgm_jax.objectives.bound import Batch

Condition = Any  # arrays [batch, ...]; None for none


class Context(NamedTuple):
    """What a network is told beside (z_t, t), of every sample; None for what there is not."""

    tokens: Tokens | None = None  # what it attends to, or takes the mean of
    maps: Maps | None = None  # what it sees beside the latent, in more channels

    def inputs(self, z_t: Latents, t: Times) -> tuple[Array, ...]:
        """What a score network is called with."""
        seen = z_t if self.maps is None else jnp.concatenate([z_t, self.maps.astype(z_t.dtype)], axis=-1)
        return (seen, t) if self.tokens is None else (seen, t, self.tokens)


NO_CONTEXT = Context()


@runtime_checkable
class Conditioning(Protocol):
    """From conditions to contexts."""

    @property
    def dropout(self) -> float:
        """Probability with which a condition in training is replaced by `nothing`."""
        ...

    def init(self, key: Key) -> Params:
        """Fresh parameters; {} if there are none."""
        ...

    def nothing(self, count: int) -> Condition:
        """The condition, `count` times, that asks for nothing."""
        ...

    def context(self, params: Params, condition: Condition) -> Context:
        """What the network is told."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unconditional:
    """No condition, no context."""

    dropout: float = 0.0

    def init(self, key: Key) -> Params:
        """None."""
        return {}

    def nothing(self, count: int) -> Condition:
        """None."""
        return None

    def context(self, params: Params, condition: Condition) -> Context:
        """None, whatever the condition."""
        return NO_CONTEXT


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labels:
    """Classes 0 to `classes` - 1, each a learned token; one more token stands for none of them.

    Attributes:
        width: of the tokens.
    """

    classes: int
    width: int = 128
    dropout: float = 0.1

    def __post_init__(self):
        if min(self.classes, self.width) < 1:
            raise ValueError(f"classes={self.classes}, width={self.width}: give positive numbers")
        check_dropout(self.dropout)

    def init(self, key: Key) -> Params:
        """The table of tokens."""
        return self.net.init(key, self.nothing(1))["params"]

    def nothing(self, count: int) -> Int[Array, "count"]:
        """The label after the last."""
        return jnp.full(count, self.classes, jnp.int32)

    def context(self, params: Params, condition: Condition) -> Context:
        """One token."""
        return Context(tokens=cast(Tokens, self.net.apply({"params": params}, condition)))

    @property
    def net(self) -> ClassEmbedding:
        """The table as a module."""
        return ClassEmbedding(self.classes + 1, self.width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Texts:
    """Word pieces, of which a transformer that is trained with the prior makes tokens; the empty text asks for nothing.

    Attributes:
        pieces: word pieces in the vocabulary, or more.
        length: of a text; shorter ones are filled up with piece 0.
        width: of the tokens.
        layers, heads, head_width: of the transformer; see `TextEncoder`.
        empty: pieces of the empty text, its beginning and its end; (101, 102) in BERT's own vocabulary.
        vocabulary: file of one piece per line; "" to make one of the training split's captions.
    """

    pieces: int
    length: int = 77
    width: int = 128
    layers: int = 4
    heads: int = 8
    head_width: int = 64
    dropout: float = 0.1
    empty: tuple[int, ...] = (2, 3)
    vocabulary: str = ""

    def __post_init__(self):
        for name in ("pieces", "width", "layers", "heads", "head_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if not len(self.empty) <= self.length:
            raise ValueError(f"length={self.length}: a text has {len(self.empty)} pieces at least")
        if not 0 <= max(self.empty) < self.pieces:
            raise ValueError(f"empty={self.empty}: there are only {self.pieces} word pieces")
        check_dropout(self.dropout)

    def init(self, key: Key) -> Params:
        """The transformer's."""
        return self.net.init(key, self.nothing(1))["params"]

    def nothing(self, count: int) -> WordPieces:
        """The empty text."""
        pieces = (*self.empty, *(0,) * (self.length - len(self.empty)))
        return jnp.tile(jnp.asarray(pieces, jnp.int32), (count, 1))

    def context(self, params: Params, condition: Condition) -> Context:
        """A token per piece."""
        return Context(tokens=cast(Tokens, self.net.apply({"params": params}, condition)))

    @property
    def net(self) -> TextEncoder:
        """The transformer."""
        return TextEncoder(self.pieces, self.length, self.width, self.layers, self.heads, self.head_width)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BesideLatents:
    """Maps of the latents' sides, which the network sees beside them; zeros stand for nothing.

    Attributes:
        shape: (height, width, channels).
    """

    shape: tuple[int, int, int]
    dropout: float = 0.0

    def init(self, key: Key) -> Params:
        """None."""
        return {}

    def nothing(self, count: int) -> Maps:
        """Zeros."""
        return jnp.zeros((count, *self.shape))

    def context(self, params: Params, condition: Condition) -> Context:
        """The maps."""
        return Context(maps=condition)


UNCONDITIONAL = Unconditional()


def check_dropout(dropout: float) -> None:
    """Refuses what is no probability.

    Raises:
        ValueError: if it is not in [0, 1].
    """
    if not 0.0 <= dropout <= 1.0:
        raise ValueError(f"dropout={dropout}: give a probability from 0 (never) to 1 (always)")


def told(
    conditioning: Conditioning, params: Params, condition: Condition, count: int, key: Key | None = None
) -> Context:
    """What the network is told of `count` samples; of no condition at all, that there is nothing.

    Args:
        params: of the model; those of the conditioning lie under "conditioner", where there are any.
        key: in training, when every sample's condition is replaced by `nothing` with probability `dropout`.
    """
    nothing = conditioning.nothing(count)
    condition = nothing if condition is None else jax.tree.map(jnp.asarray, condition)
    if key is not None and conditioning.dropout:
        dropped = jax.random.bernoulli(key, conditioning.dropout, (count,))
        condition = jax.tree.map(functools.partial(_put, dropped), nothing, condition)
    return conditioning.context(params.get("conditioner", {}), condition)


def init_conditioner(conditioning: Conditioning, key: Key) -> Params:
    """{"conditioner"} of a model's parameters, if the conditioning has some."""
    params = conditioning.init(key)
    return {"conditioner": params} if params else {}


@runtime_checkable
class Conditional(Protocol):
    """A model of what a condition is about: the noise prediction that is given a context."""

    @property
    def conditioning(self) -> Conditioning:
        """What makes contexts."""
        ...

    def eps_net(
        self, params: Params, dropout_key: Key | None = None, context: Context = NO_CONTEXT
    ) -> EpsNet:
        """(z_t, t) -> eps_hat."""
        ...


def data_net(
    model: Conditional,
    params: Params,
    batch: Batch,
    k_dropout: Key | None = None,
    k_condition: Key | None = None,
) -> EpsNet:
    """The noise prediction given the data's conditions; keys are for training.

    Nothing guides it: what guidance samples has no density that is known.
    """
    context = told(model.conditioning, params, batch.condition, len(batch.x), k_condition)
    return model.eps_net(params, k_dropout, context)


def sampling_net(
    model: Conditional, params: Params, condition: Condition, z_1: State, guidance: float
) -> EpsNet:
    """The noise prediction that leads z_1 to samples of a condition, guided if that is more than following it."""
    given = lambda context: model.eps_net(params, context=context)
    count = len(coordinates(z_1)[0])
    nothing = told(model.conditioning, params, None, count)
    if condition is None or guidance == 0.0:
        return given(nothing)
    context = told(model.conditioning, params, condition, count)
    return given(context) if guidance == 1.0 else guide(given, nothing, context, guidance)


def guide(
    eps_net_given: Callable[[Context], EpsNet], nothing: Context, context: Context, scale: float
) -> EpsNet:
    """eps(nothing) + scale (eps(context) - eps(nothing)): classifier-free guidance (Ho and Salimans 2022, eq. 6).

    Both are one call of the network, on a batch of twice the size. A scale of 1 follows the condition as training had
    it and should not be paid for twice; larger ones exaggerate it.
    """

    def predict(contexts: tuple[Context, Context], z_t: State, t: Times) -> Latents:
        eps_net = eps_net_given(jax.tree.map(_interleave, *contexts))
        twice = eps_net(jax.tree.map(lambda z: _interleave(z, z), z_t), _interleave(t, t))
        without, within = twice[::2], twice[1::2]
        return without + scale * (within - without)

    return Partial(predict, (nothing, context))


def _put(where: Bool[Array, "batch"], nothing: Array, given: Array) -> Array:
    return jnp.where(where.reshape(-1, *(1,) * (given.ndim - 1)), nothing, given)


def _interleave(one: Array, other: Array) -> Array:
    """Rows in turns: the two of a sample stay on its device."""
    return jnp.stack([one, other], axis=1).reshape(-1, *one.shape[1:])
