"""NCSN++ with PyTorch's layers: `lsgm_jax/nn/ncsnpp.py` without FIR resampling and pyramid, in NCHW."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Resample = Callable[[Tensor], Tensor]
halve: Resample = lambda h: F.avg_pool2d(h, 2)
double: Resample = lambda h: F.interpolate(h, scale_factor=2.0, mode="nearest")


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with min(C / 4, 32) groups, reduced until they divide the channels."""
    groups = max(1, min(channels // 4, 32))
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, eps=1e-6)


class ResBlock(nn.Module):
    """Residual block: twice GroupNorm, swish and a 3x3 convolution, shifted by the time embedding between them."""

    def __init__(
        self, inputs: int, outputs: int, embedding: int, dropout: float, resample: Resample | None = None
    ):
        super().__init__()
        self.resample = resample
        self.norm_in, self.norm_out = group_norm(inputs), group_norm(outputs)
        self.shortcut = None
        if resample is not None or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1)
        self.conv_in = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.embed = nn.Linear(embedding, outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(outputs, outputs, 3, padding=1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h', w']; the embedding is [batch, features]."""
        skip, h = h, F.silu(self.norm_in(h))
        if self.resample is not None:
            skip, h = self.resample(skip), self.resample(h)
        if self.shortcut is not None:
            skip = self.shortcut(skip)
        h = self.conv_in(h) + self.embed(F.silu(embedding))[:, :, None, None]
        h = self.conv_out(self.dropout(F.silu(self.norm_out(h))))
        return (skip + h) / math.sqrt(2.0)


class Attention(nn.Module):
    """Residual single-head self-attention over all positions."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        query, key, value = self.qkv(tokens)[:, None].chunk(3, dim=-1)
        found = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return (h + self.out(found).transpose(1, 2).reshape(h.shape)) / math.sqrt(2.0)


class NCSNpp(nn.Module):
    """The score network (z_t, t) -> eps_hat, [batch, c, h, w] -> the same shape.

    Attributes:
        channels: of z_t.
        side: height of z_t, which decides where attention is.
    """

    def __init__(self, config: dict, channels: int, side: int):
        super().__init__()
        self.config, base = config, config["channels"]
        widths = [base * factor for factor in config["channel_mult"]]
        dim, blocks = config["embedding_dim"] or base, config["blocks"]
        dropout = config["dropout"]

        def block(inputs: int, outputs: int, resample: Resample | None = None) -> nn.ModuleList:
            return nn.ModuleList([ResBlock(inputs, outputs, 4 * dim, dropout, resample)])

        def attend(stage: nn.ModuleList, level: int) -> nn.ModuleList:
            if side // 2**level in config["attention"]:
                stage.append(Attention(stage[0].conv_out.out_channels))
            return stage

        self.embed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, 4 * dim))
        self.stem = nn.Conv2d(channels, base, 3, padding=1)
        self.down, self.up, skips, width = nn.ModuleList(), nn.ModuleList(), [base], base
        for level, outputs in enumerate(widths):
            if level:
                self.down.append(block(width, width, halve))
                skips.append(width)
            for _ in range(blocks):
                self.down.append(attend(block(width, outputs), level))
                skips.append(width := outputs)
        self.middle = nn.ModuleList([*block(width, width), Attention(width), *block(width, width)])
        for level, outputs in reversed(list(enumerate(widths))):
            for index in range(blocks + 1):
                stage = block(width + skips.pop(), outputs)
                width = outputs
                self.up.append(attend(stage, level) if index == blocks else stage)
            if level:
                self.up.append(block(width, width, double))
        self.norm, self.eps = group_norm(width), nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """Predicts the noise."""
        embedding = self.embed(self._features(t))
        h = self.stem(z_t)
        skips = [h]
        for stage in self.down:
            skips.append(h := apply(stage, h, embedding))
        h = apply(self.middle, h, embedding)
        for stage in self.up:
            if stage[0].resample is None:
                h = torch.cat([h, skips.pop()], dim=1)
            h = apply(stage, h, embedding)
        return self.eps(F.silu(self.norm(h)))

    def _features(self, t: Tensor) -> Tensor:
        half = self.embed[0].in_features // 2
        frequencies = torch.exp(torch.linspace(0.0, -math.log(10_000.0), half))
        angles = self.config["embedding_scale"] * t[:, None] * frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


def apply(stage: nn.ModuleList, h: Tensor, embedding: Tensor) -> Tensor:
    """Applies residual blocks, and attention, which does not see the time."""
    for layer in stage:
        h = layer(h, embedding) if isinstance(layer, ResBlock) else layer(h)
    return h
