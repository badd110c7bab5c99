"""What a network is given, and how its output becomes the noise prediction."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lsgm_jax.arrays import Latents, State, Times, coordinates

MixingLogit = Float[Array, "channels"]
# A known part of the noise prediction, of process, state and time; the state is the process's kind.
FixedPart = Callable[[Any, Any, Times], Latents]


def mix(mixing_logit: MixingLogit, gaussian_eps: Latents, net_eps: Latents) -> Latents:
    """Mixed score: (1 - m) gaussian_eps + m net_eps with m = sigmoid(mixing_logit) per channel (LSGM section 3.2).

    Args:
        mixing_logit: one per channel, the last axis of the latent.
        gaussian_eps: the exact noise prediction for a Gaussian latent of the process's `data_variance` (D3).
        net_eps: the network's noise prediction.
    """
    share = jax.nn.sigmoid(mixing_logit)
    return (1.0 - share) * gaussian_eps + share * net_eps


def in_channels(z_t: State) -> Latents:
    """The coordinates side by side in the last axis: what a network takes."""
    return jnp.concatenate(coordinates(z_t), axis=-1)
