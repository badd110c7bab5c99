"""The denoiser and the first stage's decoder of latent diffusion with PyTorch's layers, in NCHW.

They have the arguments of `lsgm_jax/nn/ldm.py`, without cross-attention, and `lsgm_jax/autoencoders/ldm.py`.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.in_torch.ncsnpp import Resample, double, halve

STEPS = 1000


def norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """GroupNorm with 32 groups."""
    return nn.GroupNorm(32, channels, eps=eps)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution with one pixel of padding."""
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, swish and a 3x3 convolution; without an `embedding` width it does not see the time."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        embedding: int = 0,
        *,
        scale_shift: bool = False,
        resample: Resample | None = None,
        eps: float = 1e-5,
    ):
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.norm_in, self.norm_out = norm(inputs, eps), norm(outputs, eps)
        self.conv_in, self.conv_out = conv(inputs, outputs), conv(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        self.embed = nn.Linear(embedding, (1 + scale_shift) * outputs) if embedding else None

    def forward(self, h: Tensor, embedding: Tensor | None = None) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h', w']."""
        skip, h = h, F.silu(self.norm_in(h))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        h = self.conv_in(h)
        if self.embed is None:
            h = self.norm_out(h)
        else:
            effect = self.embed(F.silu(embedding))[:, :, None, None]
            if self.scale_shift:
                scale, shift = effect.chunk(2, dim=1)
                h = self.norm_out(h) * (1.0 + scale) + shift
            else:
                h = self.norm_out(h + effect)
        return self.shortcut(skip) + self.conv_out(F.silu(h))


class SelfAttention(nn.Module):
    """Residual self-attention over all positions."""

    def __init__(self, channels: int, heads: int, eps: float = 1e-5):
        super().__init__()
        self.heads, self.norm = heads, norm(channels, eps)
        self.qkv, self.project = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        each = self.qkv(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)
        found = F.scaled_dot_product_attention(*each.chunk(3, dim=-1)).transpose(1, 2).flatten(2)
        return h + self.project(found).transpose(1, 2).reshape(h.shape)


class Stage(nn.Module):
    """Blocks, attention and resampling in sequence; blocks see the time embedding."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """[batch, c, h, w] -> [batch, c', h', w']."""
        for layer in self.layers:
            h = layer(h, embedding) if isinstance(layer, ResidualBlock) else layer(h)
        return h


class LDMUNet(nn.Module):
    """The denoiser (z_t, t) -> eps_hat, [batch, c, h, w] -> the same shape, without a context."""

    def __init__(self, config: dict, channels: int, side: int):
        super().__init__()
        self.base = base = config["channels"]
        widths = [base * factor for factor in config["channel_mult"]]
        shift = dict(scale_shift=config["scale_shift"])

        def block(inputs: int, outputs: int, resample: Resample | None = None) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, 4 * base, resample=resample, **shift)

        def attention(width: int) -> SelfAttention:
            return SelfAttention(width, config["heads"] or width // config["head_width"])

        def stage(inputs: int, level: int) -> list[nn.Module]:
            width = widths[level]
            attend = [attention(width)] if 2**level in config["attention"] else []
            return [block(inputs, width), *attend]

        def resized(width: int, resample: Resample) -> nn.Module:
            if config["resample_in_blocks"]:
                return block(width, width, resample)
            if resample is halve:
                return conv(width, width, stride=2)
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), conv(width, width))

        self.embed = nn.Sequential(nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base))
        self.stem, self.down, self.up = conv(channels, base), nn.ModuleList(), nn.ModuleList()
        skips, width = [base], base
        for level in range(len(widths)):
            if level:
                self.down.append(Stage(resized(width, halve)))
                skips.append(width)
            for _ in range(config["blocks"]):
                self.down.append(Stage(*stage(width, level)))
                skips.append(width := widths[level])
        self.middle = Stage(block(width, width), attention(width), block(width, width))
        for level in reversed(range(len(widths))):
            for index in range(config["blocks"] + 1):
                layers = stage(width + skips.pop(), level)
                width = widths[level]
                if level and index == config["blocks"]:
                    layers.append(resized(width, double))
                self.up.append(Stage(*layers))
        self.last = nn.Sequential(norm(width), nn.SiLU(), conv(width, channels))

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Predicts the noise."""
        half = self.base // 2
        angles = (STEPS * t - 1.0)[:, None] * torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        embedding = self.embed(torch.cat([torch.cos(angles), torch.sin(angles)], dim=1))
        skips = [h := self.stem(z_t)]
        for stage in self.down:
            skips.append(h := stage(h, embedding))
        h = self.middle(h, embedding)
        for stage in self.up:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.last(h)


class Decoder(nn.Sequential):
    """Latents [batch, c, h, w] -> images, with attention in the middle alone, as in KL-f8."""

    def __init__(self, config: dict, channels: int, out_channels: int = 3):
        widths = [config["channels"] * factor for factor in config["channel_mult"]]
        width, eps = widths[-1], 1e-6
        block = lambda inputs, outputs: ResidualBlock(inputs, outputs, eps=eps)
        middle = [block(width, width), SelfAttention(width, 1, eps), block(width, width)]
        layers = [nn.Conv2d(channels, channels, 1), conv(channels, width), *middle]
        for level in reversed(range(len(widths))):
            for _ in range(config["blocks"] + 1):
                layers.append(block(width, widths[level]))
                width = widths[level]
            if level:
                layers += [nn.Upsample(scale_factor=2, mode="nearest"), conv(width, width)]
        super().__init__(*layers, norm(width, eps), nn.SiLU(), conv(width, out_channels))
