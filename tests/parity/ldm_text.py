"""LDM's text encoder, and its head for logits, which conditioning does not use."""

import jax
import jax.numpy as jnp

from lsgm_jax.conditioning.text import TextEncoder
from lsgm_jax.interop.ldm_text import IGNORED, text_encoder_state, text_encoder_variables
from tests.parity.scores import check_round_trip, state_dict


def encoder(h):
    assert h["feed_forward_multiplier"] == 4
    return TextEncoder(h["vocabulary"], h["max_length"], h["width"], h["layers"], h["heads"], h["head_width"])


def check(fixture):
    if fixture.slack == {}:  # inputs are whole numbers
        return fixture.leave(fixture.outputs())
    state, module = state_dict(fixture), encoder(fixture.spec["hyperparameters"])
    variables = text_encoder_variables(state, module)
    weight, bias = (state.pop(name) for name in IGNORED)
    check_round_trip(state, text_encoder_state(variables, module))

    forward = jax.jit(lambda tokens: module.apply(variables, tokens))
    embeddings, short = (
        forward(jnp.asarray(fixture.arrays[f"in/{name}"], jnp.int32)) for name in ("tokens", "tokens_short")
    )
    for name, value in (("embeddings", embeddings), ("embeddings_short", short)):
        fixture.check_scaled(name, value, rtol=2e-5)
    fixture.check_scaled("logits", embeddings @ weight.T + bias, rtol=2e-5)
    fixture.check_scaled("embeddings_float64", embeddings, rtol=1e-9)


CHECKS = {"ldm_text_encoder": check}
