"""Classifier-free guidance (Ho and Salimans 2022)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array

from lsgm_jax.arrays import EpsNet, Latents, State, Times
from lsgm_jax.conditioning.protocol import Context


def guide(
    eps_net_given: Callable[[Context], EpsNet], null: Context, context: Context, scale: float
) -> EpsNet:
    """Returns the guided noise prediction eps(null) + scale (eps(context) - eps(null)) (Ho and Salimans 2022, eq. 6).

    Both predictions are one call of the network, on a batch of twice the size. A guidance scale of 1 is the
    conditional model: call the network once instead.

    Args:
        eps_net_given: the noise prediction (z_t, t) -> eps_hat for a context.
        null: the context of the null condition.
        context: the context of the condition, with as many rows.
        scale: the guidance scale; 0 ignores the condition, more than 1 amplifies it.
    """

    def predict(contexts: tuple[Context, Context], z_t: State, t: Times) -> Latents:
        eps_net = eps_net_given(jax.tree.map(_interleave, *contexts))
        both = eps_net(jax.tree.map(lambda z: _interleave(z, z), z_t), _interleave(t, t))
        without, within = both[::2], both[1::2]
        return without + scale * (within - without)

    return Partial(predict, (null, context))


def _interleave(one: Array, other: Array) -> Array:
    """Alternates the rows, so that the two rows of a sample stay on its device."""
    return jnp.stack([one, other], axis=1).reshape(-1, *one.shape[1:])
