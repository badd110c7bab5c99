"""The two training stages of LSGM with PyTorch's layers, as `configs/lsgm_mnist.py` has them.

Losses, penalties and updates are those of `lsgm_jax/models`, `objectives` and `training`. Learning rates are constant:
their schedules cost nothing.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from benchmarks.in_torch.ncsnpp import NCSNpp
from benchmarks.in_torch.nvae import NVAE, Pass

BETA_MIN, BETA_MAX = 0.1, 20.0
Step = Callable[[], None]
Prepared = tuple[dict[str, nn.Module], Step]  # networks by name, and a step


class Penalty:
    """The sums of the largest singular values of all kernels, and of the largest scale of all normalisations.

    Power iteration takes `iterations` steps from the singular vectors of the call before. Kernels of equal shape are
    stacked.
    """

    def __init__(self, weight: float, iterations: int):
        self.weight, self.iterations = weight, iterations
        self.vectors: dict[torch.Size, Tensor] = {}

    def __call__(self, kernels: Iterable[Tensor], scales: Iterable[Tensor]) -> Tensor:
        """Returns the penalty, nats."""
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for kernel in kernels:
            matrix = kernel.flatten(1)
            by_shape.setdefault(matrix.shape, []).append(matrix)
        total = torch.stack([scale.abs().max() for scale in scales]).sum()
        return self.weight * (total + sum(self._spectral(torch.stack(group)) for group in by_shape.values()))

    def _spectral(self, stack: Tensor) -> Tensor:
        with torch.no_grad():
            shape = stack[0].shape
            u = self.vectors.get(shape, torch.randn(len(stack), 1, shape[0]))
            for _ in range(self.iterations):
                v = F.normalize(u @ stack, dim=2, eps=1e-3)
                u = F.normalize(v @ stack.transpose(1, 2), dim=2, eps=1e-3)
            self.vectors[shape] = u
        return (u @ stack @ v.transpose(1, 2)).sum()


class Prior(nn.Module):
    """The mixed score: the Gaussian prediction, and the network's, weighted per channel (LSGM section 3.2)."""

    def __init__(self, config: dict, channels: int, side: int):
        super().__init__()
        self.score_net = NCSNpp(config["score"], channels, side)
        logit = config["objective"]["mixing_logit_init"]
        self.mixing_logit = nn.Parameter(torch.full((channels,), float(logit)))
        self.register_buffer("active", torch.ones(channels, 1, 1))

    def forward(self, z_t: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
        """Predicts the noise."""
        share = torch.sigmoid(self.mixing_logit)[:, None, None]
        return (1.0 - share) * sigma * z_t + share * self.score_net(self.active * z_t, t)


def random_images(config: dict) -> Tensor:
    """A batch of binary images in {-1, 1}, [batch, c, h, w]."""
    height, width, channels = config["data"]["image_shape"]
    return 2.0 * (torch.rand(config["data"]["batch_size"], channels, height, width) < 0.5).float() - 1.0


def reconstruction(passed: Pass, x: Tensor, border: int) -> Tensor:
    """-log p(x | z) of the pixels inside the border under a Bernoulli distribution, nats per image."""
    inside = slice(border, -border or None)
    logits, x = (values[:, :, inside, inside] for values in (passed.logits, x))
    return -F.logsigmoid(logits * x).sum(dim=(1, 2, 3))


def vae_stage(config: dict) -> Prepared:
    """Returns the networks and a training step of the first stage."""
    vae, x = NVAE(config["autoencoder"], config["data"]["image_shape"]), random_images(config)
    section, schedule = config["vae_stage"], config["vae_kl"]
    optimiser = torch.optim.Adamax(
        vae.parameters(),
        lr=section["learning_rate"],
        eps=section["eps"],
        weight_decay=section["weight_decay"],
        foreach=True,
    )
    penalty = Penalty(config["vae_penalty"]["weight"], config["vae_penalty"]["iterations"])
    groups = config["autoencoder"]["groups_per_scale"]

    def step() -> None:
        passed = vae(x)
        kl = (passed.gaussian_cross_entropy - passed.entropy).unflatten(1, (groups, -1)).sum(dim=(2, 3, 4))
        balance = kl.detach().abs().mean(dim=0) + 0.01
        kl = schedule["start"] * (balance / balance.mean() * kl).sum(dim=1)
        loss = (reconstruction(passed, x, config["likelihood"]["border"]) + kl).mean()
        loss = loss + penalty(vae.kernels(), vae.scales())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return {"vae": vae}, step


def joint_stage(config: dict) -> Prepared:
    """Returns the networks and a training step of the second stage: one pass of the prior serves both (LSGM Alg. 3)."""
    vae, x = NVAE(config["autoencoder"], config["data"]["image_shape"]), random_images(config)
    channels = config["autoencoder"]["latent_channels"] * config["autoencoder"]["groups_per_scale"]
    prior = Prior(config, channels, vae.constant.shape[-1])
    averaged = AveragedModel(prior, multi_avg_fn=get_ema_multi_avg_fn(config["train"]["ema_decay"]))
    optimisers = [
        adamw(network, config[section]) for network, section in ((vae, "joint_vae"), (prior, "joint_prior"))
    ]
    penalty = Penalty(config["joint_vae_penalty"]["weight"], config["joint_vae_penalty"]["iterations"])
    beta, t_min = config["joint_kl"]["start"], config["density"]["t_min"]

    def step() -> None:
        passed = vae(x)
        t, weight = importance_sampled(len(x), t_min)
        alpha, sigma = (values[:, None, None, None] for values in signal_and_noise(t))
        noise = torch.randn_like(passed.z_0)
        z_t = alpha * passed.z_0 + sigma * noise
        seen = z_t.detach() + beta * (z_t - z_t.detach())
        error = ((noise - prior(seen, t, sigma)) ** 2).sum(dim=(1, 2, 3))
        entropy = passed.entropy.sum(dim=(1, 2, 3))
        loss = reconstruction(passed, x, config["likelihood"]["border"]) - beta * entropy + weight * error
        loss = loss.mean() + penalty(vae.kernels(), vae.scales())
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()
        averaged.update_parameters(prior)

    return {"vae": vae, "score_net": prior.score_net}, step


def adamw(network: nn.Module, section: dict) -> torch.optim.Optimizer:
    """AdamW of a section of the config."""
    rate, eps, decay = (section[name] for name in ("learning_rate", "eps", "weight_decay"))
    return torch.optim.AdamW(network.parameters(), lr=rate, eps=eps, weight_decay=decay, fused=True)


def signal_and_noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha_t and sigma_t of the VPSDE."""
    integral = BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
    return torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))


def importance_sampled(batch: int, t_min: float) -> tuple[Tensor, Tensor]:
    """Times from r(t), proportional to the rate of log sigma^2, and w_ll(t) / r(t) (LSGM appendix)."""
    ends = torch.log(signal_and_noise(torch.tensor([t_min, 1.0]))[1] ** 2)
    cells = (torch.randperm(batch) + torch.rand(batch)) / batch
    variance = torch.exp(ends[0] + (ends[1] - ends[0]) * cells)
    integral, slope = -torch.log1p(-variance), BETA_MAX - BETA_MIN
    t = 2.0 * integral / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2.0 * slope * integral))
    return t.clamp(t_min, 1.0), 0.5 * (ends[1] - ends[0]) / (1.0 - variance)


def only_network(network: nn.Module, *inputs: Tensor) -> Step:
    """A forward and backward pass of a network for a random gradient of its output."""

    def step() -> None:
        network.zero_grad()
        output = network(*inputs)
        output.backward(torch.randn_like(output))

    return step
