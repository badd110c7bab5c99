"""The published sizes of text encoders, and texts that are too long."""

import jax
import jax.numpy as jnp
import pytest

from lsgm_jax.conditioning.text import TextEncoder
from lsgm_jax.evaluation.model_size import count_parameters


@pytest.mark.parametrize(("width", "millions"), [(1280, 542.9), (640, 166.6)])
def test_published_parameters(width, millions):
    """Without the head for logits."""
    module = TextEncoder(vocabulary=30522, length=77, width=width, layers=32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 77), int)))
    assert round(count_parameters(shapes) / 1e6, 1) == millions


def test_a_text_without_positions_is_refused():
    module = TextEncoder(vocabulary=5, length=3, width=8, layers=1)
    with pytest.raises(ValueError, match="a text of 4 word pieces: at most length=3"):
        module.init(jax.random.key(0), jnp.zeros((1, 4), int))
