"""Converts LDM's state dict of a text encoder to variables of `TextEncoder` and back."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.conditioning.text import TextEncoder
from lsgm_jax.interop.tables import DENSE, SAME, Entry, State, Variables, to_state, to_variables

# The language model head, which conditioning does not use.
IGNORED = ("transformer.to_logits.weight", "transformer.to_logits.bias")


def text_encoder_variables(state: State, module: TextEncoder) -> Variables:
    """Returns the variables of `module` from the official state dict; the head for logits is ignored.

    Raises:
        ConversionError: if a tensor is missing, unknown or of another shape.
    """
    expected = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), int)))
    tensors = {name: tensor for name, tensor in state.items() if name not in IGNORED}
    return to_variables(list(entries(module)), tensors, expected)


def text_encoder_state(variables: Variables, module: TextEncoder) -> dict[str, np.ndarray]:
    """Returns the state dict: the inverse of `text_encoder_variables`, without the head for logits."""
    return to_state(list(entries(module)), variables)


def entries(module: TextEncoder) -> Iterator[Entry]:
    """Yields all entries. Official layers alternate between attention and feed-forward, each with its norm."""
    yield Entry("transformer.token_emb.weight", ("params", "pieces", "embedding"))
    yield Entry("transformer.pos_emb.emb.weight", ("params", "positions", "embedding"))
    yield from _norm("transformer.norm", "norm")
    for index in range(module.layers):
        ours, layers = f"layer_{index}", "transformer.attn_layers.layers"
        attend, feed = f"{layers}.{2 * index}", f"{layers}.{2 * index + 1}"
        yield from _norm(f"{attend}.0", ours, "norm_attend")
        for name, official in (("query", "to_q"), ("key", "to_k"), ("value", "to_v")):
            path = ("params", ours, "attend", name, "kernel")
            yield Entry(f"{attend}.1.{official}.weight", path, DENSE)
        yield from _dense(f"{attend}.1.to_out", ours, "attend", "join")
        yield from _norm(f"{feed}.0", ours, "norm_feed")
        yield from _dense(f"{feed}.1.net.0.0", ours, "widen")
        yield from _dense(f"{feed}.1.net.2", ours, "narrow")


def _dense(official: str, *path: str) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", ("params", *path, "kernel"), DENSE)
    yield Entry(f"{official}.bias", ("params", *path, "bias"), SAME)


def _norm(official: str, *path: str) -> Iterator[Entry]:
    yield Entry(f"{official}.weight", ("params", *path, "scale"), SAME)
    yield Entry(f"{official}.bias", ("params", *path, "bias"), SAME)
