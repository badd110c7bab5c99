"""The workloads of `benchmarks/against_original.py` in PyTorch; that script starts it."""

import sys
from typing import Any

from benchmarks.in_turns import Step, serve

try:
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count
except ModuleNotFoundError:
    sys.exit(
        f"{sys.executable} has no PyTorch: give --torch-python an environment after `pip install torch numpy`"
    )

from benchmarks.in_torch import steps
from benchmarks.in_torch.ldm import Decoder, LDMUNet
from benchmarks.in_torch.steps import Prepared, only_network

aten = torch.ops.aten


def prepare(task: dict[str, Any]) -> tuple[dict[str, Any], Step]:
    """Builds the networks and the step of a task of `against_original.CASES`."""
    torch.manual_seed(0)
    torch.set_num_threads(task["threads"])
    networks, step = WORKLOADS[task["workload"]](task["config"], task["shape"])
    counter = FlopCounterMode(display=False, custom_mapping=RULES)
    with counter:
        step()
    for name, network in networks.items():
        if not all(bool(values.isfinite().all()) for values in network.parameters()):
            raise FloatingPointError(f"{name}: a step left non-finite parameters")
    sizes = {name: sum(values.numel() for values in net.parameters()) for name, net in networks.items()}
    version = f"torch {torch.__version__}"
    return {"parameters": sizes, "flops": counter.get_total_flops(), "version": version}, step


def score_net(config: dict, shape: list[int]) -> Prepared:
    """Forward and backward pass of the score network alone."""
    batch, height, _, channels = shape
    section = config["score"]
    make = LDMUNet if section["name"] == "ldm" else steps.NCSNpp
    network = make(section, channels, height)
    inputs = torch.randn(batch, channels, height, height), torch.rand(batch)
    return {"score_net": network}, only_network(network, *inputs)


def decoder(config: dict, shape: list[int]) -> Prepared:
    """Forward pass of the decoder of a first stage alone."""
    batch, height, _, channels = shape
    network, z = Decoder(config["autoencoder"], channels), torch.randn(batch, channels, height, height)

    def step() -> None:
        with torch.inference_mode():
            network(z)

    return {"decoder": network.eval()}, step


def convolution(x: Any, kernel: Any, *settings: Any, out_shape: Any = None, **_: Any) -> int:
    """Operations of a convolution; depthwise ones do not count, see `in_jax.worker.dense_flops`."""
    groups = settings[-1]
    return conv_flop_count(list(x), list(kernel), list(out_shape)) if groups == 1 else 0


def convolution_backward(
    gradient: Any, x: Any, kernel: Any, *settings: Any, out_shape: Any = None, **_: Any
) -> int:
    """Operations of the gradients: each has as many as the forward pass."""
    groups, wanted = settings[-2], sum(shape is not None for shape in out_shape[:2])
    return wanted * convolution(x, kernel, groups, out_shape=gradient)


def attention(query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Operations of logits and values."""
    batch, heads, tokens, features = query
    return 4 * batch * heads * tokens * key[2] * features


def attention_backward(gradient: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Operations of the gradients, without the logits that are computed again."""
    return 2 * attention(query, key)


RULES = {
    aten.convolution: convolution,
    aten.convolution_backward: convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu: attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward,
}
WORKLOADS = {
    "vae_stage": lambda config, shape: steps.vae_stage(config),
    "joint_stage": lambda config, shape: steps.joint_stage(config),
    "score_net": score_net,
    "decoder": decoder,
}

if __name__ == "__main__":
    serve(prepare)
