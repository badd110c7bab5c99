"""The Diffusion Transformer (Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", arXiv 2212.09748).

The tokens of the transformer are square patches of the latent. Time and context determine shift, scale and gate of
every residual path, which start at zero (adaLN-Zero): a fresh block is the identity, a fresh network predicts zero.
Optional cross-attention to the context stands between self-attention and feed-forward layer, as in PixArt-alpha (Chen
et al. 2023, arXiv 2310.00426), but on normalised tokens like every other residual path.
"""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from lsgm_jax.arrays import Times
from lsgm_jax.nn.layers import (
    Block,
    Context,
    Embedding,
    Maps,
    TokenAttention,
    Tokens,
    attend,
    dropout,
    see_context,
)
from lsgm_jax.nn.ldm_layers import ZEROS, dense, embed_time, timestep_embedding
from lsgm_jax.nn.repeat import chain
from lsgm_jax.nn.unet import Prediction

TIME_FEATURES = 256  # length of the timestep embedding, for any width
XAVIER = nn.initializers.xavier_uniform()


Adaptation = Float[Array, "batch 1 width"]  # the same for all tokens
Patches = Float[Array, "batch patches features"]


class DiT(nn.Module):
    """Diffusion Transformer (z_t, t, context) -> eps_hat, [batch, h, w, c] -> [batch, h, w, out_channels].

    The coordinates of z_t are concatenated along its channels. The mean token of the context
    [batch, context_tokens, context_width], if given, shifts the time embedding. The defaults are DiT-S/2.

    Attributes:
        out_channels: channels of the noise prediction.
        patch: height and width of a patch.
        width: features per token. The published (width, depth, heads) are S (384, 12, 6), B (768, 12, 12),
            L (1024, 24, 16) and XL (1152, 28, 16).
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden width of the feed-forward layers over `width`.
        dropout: dropout rate in the feed-forward layers; 0 as published.
        cross_attention: whether tokens also attend to the tokens of the context.
        steps: number of timesteps of the discrete process; timestep i is at t = (i + 1) / steps.
    """

    out_channels: int
    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: int = 4
    dropout: float = 0.0
    cross_attention: bool = False
    steps: int = 1000

    def __post_init__(self):
        for name in ("patch", "width", "depth", "heads", "mlp_ratio", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.width % 4:
            raise ValueError(
                f"width={self.width}: use a multiple of 4, for sines and cosines of rows and columns"
            )
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} does not divide width={self.width}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout}: a probability below 1 is needed")
        super().__post_init__()

    @nn.nowrap
    def refuse(self, shape: tuple[int, ...]) -> str | None:
        """Returns why the network cannot take latents of this shape (height, width, channels), or None if it can."""
        if len(shape) != 3:
            return f"this network is for maps (height, width, channels), not for latents of shape {shape}"
        if any(size % self.patch for size in shape[:2]):
            return f"a latent of shape {shape}: patch={self.patch} does not divide its sides"
        return None

    @nn.compact
    def __call__(
        self, z_t: Maps, t: Times, context: Context | None = None, *, deterministic: bool
    ) -> Prediction:
        self._require_fit(z_t, context)
        rows, columns = (size // self.patch for size in z_t.shape[1:3])
        embedding = see_context(embed_time(t, self.steps, TIME_FEATURES, self.width), context)
        tokens = dense(self.width, z_t, "patches", XAVIER)(to_patches(z_t, self.patch))
        tokens = (tokens + positions(rows, columns, self.width)).astype(z_t.dtype)
        seen = () if context is None or not self.cross_attention else (context,)
        blocks = [
            DiTBlock(self.heads, self.mlp_ratio, self.dropout, name=f"block_{i}") for i in range(self.depth)
        ]
        tokens = chain(blocks, tokens, embedding, *seen, deterministic=deterministic)
        shift, scale = adapt(embedding, self.width, 2)
        patches = dense(self.patch**2 * self.out_channels, z_t, "eps", ZEROS)(modulate(tokens, shift, scale))
        return from_patches(patches, self.patch, rows)

    @nn.nowrap
    def _require_fit(self, z_t: Maps, context: Context | None) -> None:
        if (refusal := self.refuse(z_t.shape[1:])) is not None:
            raise ValueError(refusal)
        if self.cross_attention and context is None:
            raise ValueError("cross_attention=True needs a context; without one set it to False")


class DiTBlock(Block):
    """adaLN-Zero block: residual self-attention, cross-attention if there is a context, and a feed-forward layer.

    It maps tokens [batch, tokens, width], the time embedding [batch, features] and the context
    [batch, context_tokens, context_width] to the tokens' shape. The attributes are those of `DiT`.
    """

    heads: int
    mlp_ratio: int = 4
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, tokens: Tokens, embedding: Embedding, context: Context | None = None, *, deterministic: bool
    ) -> Tokens:
        shift, scale, gate, *of_feed = adapt(embedding, tokens.shape[-1], 6)
        attention = nn.MultiHeadDotProductAttention(
            self.heads, kernel_init=XAVIER, attention_fn=attend, dtype=tokens.dtype, name="attend"
        )
        tokens = add_gated(tokens, attention(modulate(tokens, shift, scale)), gate)
        if context is not None:
            look = TokenAttention(self.heads, tokens.shape[-1] // self.heads, ZEROS, name="attend_context")
            tokens = tokens + look(normalise(tokens), context)
        shift, scale, gate = of_feed
        return add_gated(tokens, self._feed(modulate(tokens, shift, scale), deterministic), gate)

    def _feed(self, tokens: Tokens, deterministic: bool) -> Tokens:
        width = tokens.shape[-1]
        hidden = nn.gelu(dense(self.mlp_ratio * width, tokens, "widen", XAVIER)(tokens), approximate=True)
        hidden = dropout(hidden, self.dropout, deterministic=deterministic)
        return dense(width, tokens, "narrow", XAVIER)(hidden)


def adapt(embedding: Embedding, width: int, count: int) -> list[Adaptation]:
    """Maps the embedding to `count` vectors [batch, 1, width], by a dense layer "adapt" that starts at zero."""
    effect = dense(count * width, embedding, "adapt", ZEROS)(nn.swish(embedding))
    return jnp.split(effect[:, None, :], count, axis=-1)


def normalise(tokens: Tokens) -> Tokens:
    """Applies LayerNorm without parameters; float32 statistics, the variance as the mean of (tokens - mean)^2."""
    norm = nn.LayerNorm(
        epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False, dtype=tokens.dtype
    )
    return norm(tokens)


def modulate(tokens: Tokens, shift: Adaptation, scale: Adaptation) -> Tokens:
    """Returns normalise(tokens) * (1 + scale) + shift."""
    return (normalise(tokens) * (1.0 + scale) + shift).astype(tokens.dtype)


def add_gated(tokens: Tokens, change: Tokens, gate: Adaptation) -> Tokens:
    """Returns tokens + gate * change, the gated residual sum."""
    return tokens + (gate * change).astype(tokens.dtype)


def to_patches(maps: Maps, patch: int) -> Patches:
    """Splits maps [batch, h, w, c] into tokens [batch, h w / patch^2, patch^2 c].

    Patches are in row-major order, and so are the pixels in a patch, each with its channels.
    """
    batch, height, width, channels = maps.shape
    squares = maps.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return squares.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def from_patches(tokens: Patches, patch: int, rows: int) -> Maps:
    """Inverts `to_patches`, for maps with `rows` rows of patches."""
    batch, count, features = tokens.shape
    columns, channels = count // rows, features // patch**2
    squares = tokens.reshape(batch, rows, columns, patch, patch, channels)
    return squares.swapaxes(2, 3).reshape(batch, rows * patch, columns * patch, channels)


def positions(rows: int, columns: int, width: int) -> Float[Array, "tokens width"]:
    """Computes fixed positional embeddings: cosines and sines of each token's row, then of its column.

    Args:
        rows: rows of patches, counted from 0.
        columns: columns of patches, counted from 0.
        width: features per token, a multiple of 4.
    """
    row, column = (timestep_embedding(jnp.arange(n, dtype=float), width // 2) for n in (rows, columns))
    shape = (rows, columns, width // 2)
    both = [jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None], shape)]
    return jnp.concatenate(both, axis=-1).reshape(rows * columns, width)
