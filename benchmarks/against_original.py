"""Time and memory beside the operations of the published architectures, written with PyTorch's own layers.

    python -m venv TORCH && TORCH/bin/pip install torch numpy
    python -m benchmarks.against_original --torch-python=TORCH/bin/python [--case=NAME] [--threads=2] [--turns=5]
        [--steps=1] [--quick]

Both libraries have processes of their own, which take turns: A B A B. The fastest turn counts, because disturbances
only ever slow a measurement. CPU time is that of all threads, and says more than wall time where others use the
machine. Both sides have to agree in the number of parameters of every network, and in the multiply-adds of a step to
one percent, counted in the program of each. Memory is the peak of the whole process, compiler and allocator included.
The networks in `in_torch` are written from this library's modules and the papers.
"""

import argparse
import json
import sys
from typing import Any, NamedTuple

from tqdm import tqdm

from benchmarks.in_turns import Turn, Worker
from lsgm_jax.config.load import load_config

TOLERANCE = 0.01
SIDES = ("ours", "PyTorch")
COLUMNS = ("case", *(f"{side}, {unit}" for unit in ("CPU ms", "wall ms", "peak MiB") for side in SIDES))


class Case(NamedTuple):
    """A workload.

    Attributes:
        workload: name in the `WORKLOADS` of both workers.
        config: file with its argument.
        batch_size: images or latents per step.
        shape: of the latents of a network alone; the sizes of `quick`, which takes seconds, are its second entry.
    """

    workload: str
    config: str
    batch_size: int
    shape: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    def task(self, quick: bool) -> dict[str, Any]:
        """What both workers get: the complete config, and where it comes from."""
        path = self.config + ("" if not quick else ",quick" if ":" in self.config else ":quick")
        batch, shape = (2, self.shape[1]) if quick else (self.batch_size, self.shape[0])
        overrides = [f"--config.data.batch_size={batch}"]
        complete = json.loads(load_config(path, overrides).to_json())
        task = {"workload": self.workload, "path": path, "overrides": overrides, "config": complete}
        return task | {"shape": [batch, *shape]}


CASES = {
    "NVAE stage": Case("vae_stage", "configs/lsgm_mnist.py", 16),
    "joint stage": Case("joint_stage", "configs/lsgm_mnist.py", 16),
    "NCSN++ alone": Case("score_net", "configs/lsgm_mnist.py", 16, ((8, 8, 40), (8, 8, 4))),
    "LDM U-Net alone": Case("score_net", "configs/ldm.py:celebahq256", 1, ((64, 64, 3), (16, 16, 3))),
    "KL-f8 decoder alone": Case("decoder", "configs/ldm.py:kl-f8", 1, ((64, 64, 4), (8, 8, 4))),
}


def main() -> None:
    """Measures the cases and prints a table in Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", default=sys.executable, help="interpreter that has PyTorch")
    parser.add_argument("--case", choices=CASES, action="append", help="default: all")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps per turn")
    parser.add_argument("--quick", action="store_true", help="tiny networks, in a minute")
    options = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} | ours / PyTorch, CPU | GFLOP |\n|{'---|' * (len(COLUMNS) + 2)}")
    versions: list[str] = []
    for name in options.case or CASES:
        commands = [
            [sys.executable, "-m", "benchmarks.in_jax.worker"],
            [options.torch_python, "-m", "benchmarks.in_torch.worker"],
        ]
        task = CASES[name].task(options.quick)
        try:
            with (
                Worker(commands[0], task, options.threads) as ours,
                Worker(commands[1], task, options.threads) as original,
            ):
                require_equal_work(ours.about, original.about)
                best = alternate((ours, original), options.turns, options.steps)
        except (RuntimeError, ValueError) as error:
            sys.exit(f"{name}: {error}")
        versions = [ours.about["version"], original.about["version"]]
        print(row(name, best, ours.about["flops"]), flush=True)
    print(f"\n{', '.join(versions)}; {options.threads} threads; the fastest of {options.turns} turns")


def require_equal_work(ours: dict[str, Any], original: dict[str, Any]) -> None:
    """Refuses a comparison of different networks or of different amounts of work.

    Raises:
        ValueError: names what differs.
    """
    if ours["parameters"] != original["parameters"]:
        raise ValueError(f"parameters differ: {ours['parameters']} and {original['parameters']}")
    ratio = ours["flops"] / original["flops"]
    if abs(ratio - 1.0) > TOLERANCE:
        flops = f"{ours['flops'] / 1e9:.3f} and {original['flops'] / 1e9:.3f} GFLOP"
        raise ValueError(f"a step takes {flops}: the ratio {ratio:.4f} is not 1")


def alternate(workers: tuple[Worker, ...], turns: int, steps: int) -> list[Turn]:
    """Lets the workers take turns and returns the least of every column, and the greatest peak, for each of them."""
    taken: list[list[Turn]] = [[] for _ in workers]
    for _ in tqdm(range(turns), leave=False):
        for worker, mine in zip(workers, taken, strict=True):
            mine.append(worker.turn(steps))
    return [
        Turn(min(turn.cpu for turn in mine), min(turn.wall for turn in mine), mine[-1].peak_mib)
        for mine in taken
    ]


def row(name: str, best: list[Turn], flops: float) -> str:
    """A row of the table."""
    ours, original = best
    cells = [1e3 * ours.cpu, 1e3 * original.cpu, 1e3 * ours.wall, 1e3 * original.wall]
    cells += [ours.peak_mib, original.peak_mib]
    numbers = " | ".join(f"{cell:,.0f}" for cell in cells)
    return f"| {name} | {numbers} | {ours.cpu / original.cpu:.2f} | {flops / 1e9:,.1f} |"


if __name__ == "__main__":
    main()
