"""Memory of the sharded training state per device, for every published config.

python benchmarks/state_bytes.py

Nothing is allocated: shapes come from `jax.eval_shape`, shards from the shardings of `parallel.name=fsdp`. The state is
that of the last stage: parameters, EMA parameters, the moments of the optimiser and the state of the loss. Prints a
table in Markdown: GiB on a single device, and for more devices the share per device times the number of devices. The
value 1 is an even sharding; the excess is arrays that are too small or of odd shape, which are replicated.
"""

import jax

from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.sharding import Sharded, bytes_per_device
from lsgm_jax.training.state import TrainState

CONFIGS = (
    "lsgm_cifar10.py:fid",
    "lsgm_cifar10.py:nll",
    "lsgm_cifar10.py:balanced",
    "lsgm_cifar10.py:cld",
    "lsgm_celebahq256.py:quantitative",
    "lsgm_celebahq256.py:qualitative",
    "lsgm_mnist.py",
    "lsgm_omniglot.py",
    "cld_cifar10.py",
    "cld_celebahq256.py",
    "digits.py",
)
DEVICES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def training_state(path: str) -> TrainState:
    """Returns the shapes of the training state in the last stage of a config."""
    planned, key = experiment(load_config(path, [])), jax.random.key(0)
    stage = planned.training.stages(Data.without(planned.model.data_shape))[-1]
    return jax.eval_shape(stage.first_state, jax.eval_shape(planned.model.init, key), key)


def main() -> None:
    """Prints the table."""
    print("| config | GiB in all | " + " | ".join(map(str, DEVICES[1:])) + " |")
    print("|---|---|" + "---|" * len(DEVICES[1:]))
    for name in CONFIGS:
        state = training_state(f"configs/{name}")
        sizes = [bytes_per_device(state, Sharded(), devices) for devices in DEVICES]
        times = [count * size / sizes[0] for count, size in zip(DEVICES[1:], sizes[1:], strict=True)]
        cells = " | ".join(f"{value:.3f}" for value in times)
        print(f"| {name} | {sizes[0] / 2**30:.2f} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
