"""The workloads of `benchmarks/against_original.py` in this library; that script starts it."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.in_turns import Step, serve
from benchmarks.training_step import Planned, Trial
from benchmarks.work import Kind, work
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.config.registry import Config
from lsgm_jax.evaluation.model_size import count_parameters
from lsgm_jax.nn.network import Network, trainable


def prepare(task: dict[str, Any]) -> tuple[dict[str, Any], Step]:
    """Builds the networks and the step of a task of `against_original.CASES`."""
    config = load_config(task["path"], task["overrides"])
    networks, flops, step = WORKLOADS[task["workload"]](config, task["shape"])
    sizes = {name: count_parameters(trainable(params)) for name, params in networks.items()}
    return {"parameters": sizes, "flops": flops, "version": f"jax {jax.__version__}"}, step


def stage(name: str) -> Callable[[Config, list[int]], tuple[dict[str, Any], int, Step]]:
    """The training step of a stage, as `lsgm train` compiles it."""

    def workload(config: Config, shape: list[int]) -> tuple[dict[str, Any], int, Step]:
        planned = Planned(config, name)
        flops = dense_flops(planned.step, planned.like, *planned.arguments)
        params = planned.like.params
        trial = Trial(planned)
        named = (
            {"vae": params["vae"], "score_net": params["score_net"]} if name == "joint" else {name: params}
        )
        return named, flops, lambda: trial.take(1)

    return workload


def dense_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations besides depthwise convolutions, which need not be convolutions here, and are one percent."""
    is_dense: Callable[[Kind], bool] = lambda kind: not kind.layer.endswith("depthwise")
    return work(function, *arguments).flops(is_dense)


def score_net(config: Config, shape: list[int]) -> tuple[dict[str, Any], int, Step]:
    """Forward and backward pass of the score network alone."""
    network, key = experiment(config).model.prior.net, jax.random.key(0)
    inputs = jax.random.normal(key, shape), jax.random.uniform(key, shape[:1])

    def backward(params: Any, key: Any) -> Any:
        output, pull_back = jax.vjp(lambda params: network.apply(params, *inputs, dropout_key=key), params)
        return pull_back(jax.random.normal(key, output.shape))

    return _alone("score_net", network, inputs, backward)


def decoder(config: Config, shape: list[int]) -> tuple[dict[str, Any], int, Step]:
    """Forward pass of the decoder of a first stage alone."""
    network, z = experiment(config).model.first_stage.decoder, jnp.ones(shape)
    return _alone("decoder", network, (z,), lambda params, key: network.apply(params, z))


def _alone(
    name: str, network: Network, inputs: tuple[jax.Array, ...], call: Callable[[Any, Any], Any]
) -> tuple[dict[str, Any], int, Step]:
    key = jax.random.key(1)
    params = jax.jit(network.init)(key, *inputs)
    compiled = jax.jit(call).lower(params, key).compile()
    flops = dense_flops(call, params, key)
    return {name: params}, flops, lambda: jax.block_until_ready(compiled(params, key))


WORKLOADS = {
    "vae_stage": stage("vae"),
    "joint_stage": stage("joint"),
    "score_net": score_net,
    "decoder": decoder,
}

if __name__ == "__main__":
    serve(prepare)
