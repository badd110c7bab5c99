"""NVAE with PyTorch's layers: `lsgm_jax/autoencoders/nvae*.py`, of which it has the arguments, in NCHW."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BRANCH_SCALE = 0.1
EXPANSIONS = {"res_bnswish": (0, 0), "res_mbconv": (6, 3)}


class Conv(nn.Conv2d):
    """Symmetrically padded convolution, with weight normalisation by the logarithm of the norm of each output.

    `applied` is the kernel of the last call, which the spectral penalty is about.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        weight_norm: bool = True,
    ):
        super().__init__(inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)
        norms = self.weight.detach().flatten(1).norm(dim=1)
        self.log_norm = nn.Parameter(torch.log(norms + 0.01)) if weight_norm else None
        self.applied: Tensor | None = None

    def forward(self, h: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h', w']."""
        kernel = self.weight.view_as(self.weight)
        if self.log_norm is not None:
            norms = self.weight.flatten(1).norm(dim=1)
            kernel = kernel * (torch.exp(self.log_norm) / (norms + 1e-5))[:, None, None, None]
        self.applied = kernel
        return F.conv2d(h, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalisation as NVAE has it."""
    return nn.BatchNorm2d(channels, eps=1e-5, momentum=0.05)


def plain_conv(inputs: int, outputs: int, size: int, groups: int = 1) -> Conv:
    """A convolution of an inverted bottleneck: no bias, no weight normalisation."""
    return Conv(inputs, outputs, size, groups=groups, bias=False, weight_norm=False)


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate of the means of all channels."""

    def __init__(self, channels: int):
        super().__init__()
        narrow = max(channels // 16, 4)
        self.gate = nn.Sequential(
            nn.Linear(channels, narrow), nn.ReLU(inplace=True), nn.Linear(narrow, channels), nn.Sigmoid()
        )

    def forward(self, h: Tensor) -> Tensor:
        """Returns maps of the same shape."""
        return h * self.gate(h.mean(dim=(2, 3)))[:, :, None, None]


class DownSkip(nn.Module):
    """Halves the resolution of a shortcut: each pixel of a 2x2 block makes a quarter of the channels."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        quarter = outputs // 4
        widths = (quarter, quarter, quarter, outputs - 3 * quarter)
        self.corners = nn.ModuleList(Conv(inputs, width, 1, stride=2) for width in widths)

    def forward(self, h: Tensor) -> Tensor:
        """[batch, c, h, w] -> [batch, outputs, h / 2, w / 2]."""
        h = F.silu(h)
        parts = (h, h[:, :, 1:, 1:], h[:, :, :, 1:], h[:, :, 1:, :])
        return torch.cat([conv(part) for conv, part in zip(self.corners, parts, strict=True)], dim=1)


def up_skip(inputs: int, outputs: int) -> nn.Module:
    """Bilinear upsampling with aligned corners, and a 1x1 convolution."""
    double = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    return nn.Sequential(double, Conv(inputs, outputs, 1, bias=False))


def swish_branch(inputs: int, outputs: int, resampling: str) -> list[nn.Module]:
    """Twice batch normalisation, swish and a 3x3 convolution."""
    double = [nn.Upsample(scale_factor=2, mode="nearest")] if resampling == "up" else []
    first = Conv(inputs, outputs, 3, stride=2 if resampling == "down" else 1)
    before = [batch_norm(inputs), nn.SiLU(inplace=True), *double, first]
    return [*before, batch_norm(outputs), nn.SiLU(inplace=True), Conv(outputs, outputs, 3)]


def bottleneck_branch(inputs: int, outputs: int, resampling: str, expansion: int) -> list[nn.Module]:
    """Inverted bottleneck: expansion, a depthwise 5x5 convolution, projection."""
    inner = expansion * inputs
    return [
        *([nn.Upsample(scale_factor=2, mode="nearest")] if resampling == "up" else []),
        batch_norm(inputs),
        plain_conv(inputs, inner, 1),
        *(batch_norm(inner), nn.SiLU(inplace=True)),
        plain_conv(inner, inner, 5, groups=inner),
        *(batch_norm(inner), nn.SiLU(inplace=True)),
        plain_conv(inner, outputs, 1),
        batch_norm(outputs),
    ]


class Cell(nn.Module):
    """The residual cell skip(h) + 0.1 branch(h)."""

    def __init__(self, inputs: int, outputs: int, resampling: str, expansion: int, use_se: bool):
        super().__init__()
        if expansion:
            branch = bottleneck_branch(inputs, outputs, resampling, expansion)
        else:
            branch = swish_branch(inputs, outputs, resampling)
        self.branch = nn.Sequential(*branch, *([SqueezeExcite(outputs)] if use_se else []))
        skips = {"none": nn.Identity, "down": DownSkip, "up": up_skip}
        self.skip = skips[resampling](inputs, outputs)

    def forward(self, h: Tensor) -> Tensor:
        """[batch, inputs, h, w] -> [batch, outputs, h', w']."""
        return self.skip(h) + BRANCH_SCALE * self.branch(h)


class Encoder(nn.Module):
    """Bottom-up encoder of one scale of latents: images -> one feature map per group, in decoder order."""

    def __init__(self, config: dict, image_channels: int):
        super().__init__()
        widths = [config["encoder_channels"] * factor for factor in config["channel_mult"]]
        cells, width = [Conv(image_channels, widths[0], 3)], widths[0]
        for block in range(config["pre_blocks"]):
            for index in range(config["pre_cells"]):
                down = index == config["pre_cells"] - 1
                resampling = "down" if down else "none"
                cells.append(Cell(width, widths[block + down], resampling, 0, config["use_se"]))
                width = widths[block + down]
        self.before = nn.Sequential(*cells)
        self.groups = nn.ModuleList(
            nn.Sequential(
                *(Cell(width, width, "none", 0, config["use_se"]) for _ in range(config["encoder_cells"]))
            )
            for _ in range(config["groups_per_scale"])
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the features of all groups."""
        h, features = self.before(x), []
        for group in self.groups:
            features.append(h := group(h))
        return features[::-1]


class LatentGroup(nn.Module):
    """One group of latents: its posterior, and the decoder cells after it."""

    def __init__(self, config: dict, width: int, state: int, first: bool):
        super().__init__()
        latents, expansion = config["latent_channels"], EXPANSIONS[config["arch"]][0]
        self.from_state = None if first else Conv(state, width, 1)
        self.posterior = nn.Sequential(nn.ELU(), Conv(width, 2 * latents, 3))
        self.from_latent = Conv(latents, latents, 3)
        self.merge = Conv(state + latents, state, 1)
        self.cells = nn.Sequential(
            *(Cell(state, state, "none", expansion, config["use_se"]) for _ in range(config["decoder_cells"]))
        )

    def infer(self, features: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mean and log standard deviation of the posterior, softly clamped to (-5, 5)."""
        if self.from_state is not None:
            features = features + self.from_state(state)
        mean, log_std = (5.0 * torch.tanh(self.posterior(features) / 5.0)).chunk(2, dim=1)
        return mean, log_std

    def absorb(self, state: Tensor, latent: Tensor) -> Tensor:
        """Merges the latent into the decoder state and applies the decoder cells."""
        return self.cells(self.merge(torch.cat([state, self.from_latent(latent)], dim=1)))


def tail(config: dict, state: int, out_channels: int) -> nn.Module:
    """Decoder state after the last group -> features of the likelihood."""
    widths = [config["decoder_channels"] * factor for factor in config["channel_mult"]]
    cells, expansion = [], EXPANSIONS[config["arch"]][1]
    for width in reversed(widths[: config["post_blocks"]]):
        for index in range(config["post_cells"]):
            cells.append(Cell(state, width, "none" if index else "up", expansion, config["use_se"]))
            state = width
    return nn.Sequential(*cells, nn.ELU(), Conv(state, out_channels, 3))


class Pass(NamedTuple):
    """One pass: logits, latents side by side, and per entry their entropy and cross entropy with N(0, I), nats."""

    logits: Tensor
    z_0: Tensor
    entropy: Tensor
    gaussian_cross_entropy: Tensor


class NVAE(nn.Module):
    """NVAE of one scale of latents, without flows and input pyramid, as MNIST's config has it."""

    def __init__(self, config: dict, image_shape: tuple[int, int, int]):
        super().__init__()
        last = config["channel_mult"][-1]
        width, state = config["encoder_channels"] * last, config["decoder_channels"] * last
        self.encoder = Encoder(config, image_shape[-1])
        side = image_shape[0] // 2 ** config["pre_blocks"]
        self.constant = nn.Parameter(torch.rand(1, state, side, side))
        self.groups = nn.ModuleList(
            LatentGroup(config, width, state, index == 0) for index in range(config["groups_per_scale"])
        )
        self.tail = tail(config, state, image_shape[-1])

    def forward(self, x: Tensor) -> Pass:
        """Infers, draws and decodes images [batch, c, h, w] in [-1, 1]."""
        state, drawn = self.constant.expand(len(x), -1, -1, -1), []
        for group, features in zip(self.groups, self.encoder(x), strict=True):
            mean, log_std = group.infer(features, state)
            noise = torch.randn_like(mean)
            latent = mean + torch.exp(log_std) * noise
            entropy = 0.5 * ((latent - mean) * torch.exp(-log_std)) ** 2 + log_std
            drawn.append((latent, entropy, 0.5 * latent**2))
            state = group.absorb(state, latent)
        z_0, entropy, cross = (torch.cat(parts, dim=1) for parts in zip(*drawn, strict=True))
        constant = 0.5 * math.log(2.0 * math.pi)
        return Pass(self.tail(state), z_0, entropy + constant, cross + constant)

    def kernels(self) -> Iterator[Tensor]:
        """The kernels that the last pass applied."""
        return (module.applied for module in self.modules() if isinstance(module, Conv))

    def scales(self) -> Iterator[Tensor]:
        """The scales of all normalisations."""
        return (module.weight for module in self.modules() if isinstance(module, nn.BatchNorm2d))
