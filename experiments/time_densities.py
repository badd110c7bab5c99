"""Monte Carlo noise of the weighted loss by density of the training times, for every weighting and process.

python experiments/time_densities.py --out=runs/time_densities

The latents are the 16 leading principal components of the digits of scikit-learn, whitened. For every process the
squared error of a score network is measured over a grid of times, before and after training. Quadrature gives the
standard deviation of one draw of lambda / r |eps - eps_hat|^2 for every weighting and density. Writes table.csv,
table.png and page.md, which is docs/time_densities.md. Takes two minutes on two CPU cores.
"""

import argparse
import csv
import datetime
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn
from sklearn.datasets import load_digits
from tqdm import tqdm

from lsgm_jax.arrays import State, Times, as_state, coordinates, expand, sum_per_sample
from lsgm_jax.config.registry import WEIGHTINGS
from lsgm_jax.models.score_model import mix
from lsgm_jax.objectives.score_matching import score_matching, squared_error
from lsgm_jax.objectives.time_densities import Defensive, Optimal, TimeDensity, Uniform, sample_times
from lsgm_jax.objectives.weightings import unweighted
from lsgm_jax.processes import linear
from lsgm_jax.processes.cld import CLD
from lsgm_jax.processes.ve import VE
from lsgm_jax.processes.vp import VP, GeometricVP, SubVP

T_MIN = 0.01
PROCESSES = {"VP": VP(), "sub-VP": SubVP(), "VE": VE(), "geometric VP": GeometricVP(), "CLD": CLD()}
DENSITIES: dict[str, TimeDensity] = {
    "uniform": Uniform(t_min=T_MIN),
    **{
        f"optimal, {name}": Optimal(weighting=weighting, t_min=T_MIN)
        for name, weighting in WEIGHTINGS.items()
    },
    "defensive": Defensive(t_min=T_MIN),
}


PAIRS = [(process, weighting) for process in PROCESSES for weighting in WEIGHTINGS]
# Mixing logit at the start, and whether the network is trained.
SCORES = {
    "untrained": (-3.0, False),
    "untrained, equal shares": (0.0, False),
    "trained": (-3.0, True),
}
PAGE = """# Densities of training times

This page measures the Monte Carlo noise of one draw of $\\lambda / r \\cdot |\\epsilon - \\hat\\epsilon|^2$ with a time
from the density $r$ ([derivations](derivations.md), O5). It is written by `{command}`
(seed 0, {seconds:.0f} s on {hardware}, {date}).

The latents are {dims} whitened principal components of the digits, the score is mixed with a network of three hidden
layers of 256, and times lie in [{t_min}, 1]. Scores: *untrained*, an initial network with LSGM's mixing logit of -3,
which gives it 5 % of the prediction; *untrained, equal shares*, the same with a logit of 0; *trained*, the first after
{steps} steps of unweighted score matching. Every value is the standard deviation of one draw over that of uniform times
(below 1 is better), by quadrature over 600 times with {draws} latents each; the smallest value of a line is bold.
"optimal, likelihood" is `Optimal(weighting=likelihood)`, LSGM's $r_{{ll}}$, and so on.

{conclusion}

Importance sampling has lower variance if the score is close to the Gaussian score or to the ground truth. In the papers
this holds from the first step on, because of the mixed score. If the network is wrong near t = 1, importance sampling
has a heavy tail; `defensive` bounds it.

![The same values as a heat map](images/time_densities.png)

{tables}"""


class Row(NamedTuple):
    """One cell of the table."""

    process: str
    score: str
    weighting: str
    density: str
    mean: float  # of the loss, in nats or in the units of the weighting
    std: float  # standard deviation of one draw


class MLP(nn.Module):
    """Network (z_t, t) -> eps_hat for vectors, with a mixing logit that starts at `mixing_logit`."""

    dims: int
    mixing_logit: float
    width: int = 256

    @nn.compact
    def __call__(self, z_t: State, t: Times) -> tuple[jax.Array, jax.Array]:
        """Returns the prediction of the network and the mixing logit per dimension."""
        angles = t[:, None] * jnp.geomspace(1.0, 100.0, 16)
        parts = [*coordinates(z_t), jnp.sin(angles), jnp.cos(angles)]
        hidden = jnp.concatenate(parts, axis=-1)
        for _ in range(3):
            hidden = nn.swish(nn.Dense(self.width)(hidden))
        mixing_logit = self.param("mixing_logit", nn.initializers.constant(self.mixing_logit), (self.dims,))
        return nn.Dense(self.dims)(hidden), mixing_logit


def whitened_digits(dims: int) -> jax.Array:
    """Returns the leading principal components of the digits with unit variance, [1797, dims]."""
    images = np.asarray(load_digits().data, np.float64)
    centred = images - images.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    components = centred @ axes[:dims].T
    return jnp.asarray(components / components.std(0), jnp.float32)


def score_net(process: linear.Process, module: MLP) -> Callable:
    """Returns the mixed noise prediction; the network gets z_t normalised by the scale for Gaussian data."""

    def predict(params: dict, z_t: State, t: Times) -> jax.Array:
        signal, noise = linear.kernel(process, t)
        scale = jnp.sqrt(signal**2 + jnp.sum(noise**2, axis=-1))
        parts = [z / expand(scale[:, i], z) for i, z in enumerate(coordinates(z_t))]
        net_eps, mixing_logit = module.apply(params, as_state(parts), t)
        return mix(mixing_logit, linear.gaussian_eps(process, z_t, t), net_eps)

    return predict


def train(process: linear.Process, predict: Callable, params: dict, data: jax.Array, steps: int) -> dict:
    """Trains by unweighted score matching at uniform times, with 512 latents per step."""
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-3, steps))

    def loss(params: dict, key: jax.Array) -> jax.Array:
        k_data, k_t, k_eps = jax.random.split(key, 3)
        z_0 = data[jax.random.randint(k_data, (512,), 0, len(data))]
        t = sample_times(Uniform(t_min=1e-3), process, k_t, len(z_0))
        eps = linear.unit_noise(process, k_eps, z_0.shape)
        eps_net = lambda z_t, t: predict(params, z_t, t)
        return jnp.mean(score_matching(unweighted, process, eps_net, z_0, t, eps))

    @jax.jit
    def step(params: dict, state: optax.OptState, key: jax.Array) -> tuple[dict, optax.OptState]:
        updates, state = optimiser.update(jax.grad(loss)(params, key), state, params)
        return optax.apply_updates(params, updates), state

    state = optimiser.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = step(params, state, key)
    return params


def error_moments(
    process: linear.Process, predict: Callable, params: dict, data: jax.Array, t: jax.Array, draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the means of |eps - eps_hat|^2 and of its square at every time of `t`."""

    @jax.jit
    def at(t: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        k_data, k_eps = jax.random.split(key)
        z_0 = data[jax.random.randint(k_data, (draws,), 0, len(data))]
        times = jnp.full(draws, t)
        eps = linear.unit_noise(process, k_eps, z_0.shape)
        z_t = linear.perturb(process, z_0, times, eps)
        eps_net = lambda z_t, t: predict(params, z_t, t)
        error = sum_per_sample(squared_error(eps_net, z_t, times, eps))
        return jnp.mean(error), jnp.mean(error**2)

    keys = jax.random.split(jax.random.key(2), len(t))
    pairs = [at(*pair) for pair in zip(t, keys, strict=True)]
    first, second = np.array(pairs, np.float64).T
    return first, second


def spreads(
    process: linear.Process, t: jax.Array, first: np.ndarray, second: np.ndarray
) -> dict[tuple[str, str], tuple[float, float]]:
    """Computes mean and std of lambda / r |eps - eps_hat|^2 for every weighting and density, by quadrature."""
    table = {}
    for (name, weighting), (label, density) in (
        (w, d) for w in WEIGHTINGS.items() for d in DENSITIES.items()
    ):
        weight, r = np.asarray(weighting(process, t)), np.asarray(density.density(process, t))
        mean = np.trapezoid(weight * first, t)
        square = np.trapezoid(weight**2 * second / r, t)
        table[name, label] = float(mean), float(np.sqrt(square - mean**2))
    return table


def measure(dims: int, steps: int, draws: int) -> list[Row]:
    """Computes all cells of the table."""
    data, rows = whitened_digits(dims), []
    t = jnp.sort(jnp.concatenate([jnp.geomspace(T_MIN, 1.0, 300), jnp.linspace(T_MIN, 1.0, 302)[1:-1]]))
    jobs = [(name, score) for name in PROCESSES for score in SCORES]
    for name, score in tqdm(jobs, desc="scores"):
        mixing_logit, trained = SCORES[score]
        process, module = PROCESSES[name], MLP(dims, mixing_logit)
        predict = score_net(process, module)
        example = linear.sample_prior(process, jax.random.key(0), (1, dims))
        params = module.init(jax.random.key(0), example, jnp.zeros(1))
        if trained:
            params = train(process, predict, params, data, steps)
        moments = error_moments(process, predict, params, data, t, draws)
        cells = spreads(process, t, *moments)
        rows += [Row(name, score, *pair, *cell) for pair, cell in cells.items()]
    return rows


def as_markdown(rows: list[Row]) -> str:
    """Formats one table per score: standard deviations over that of uniform times, the smallest of a line in bold."""
    others = [density for density in DENSITIES if density != "uniform"]
    lines = []
    for score in SCORES:
        lines += [f"## Score: {score}", ""]
        lines += ["| process | weighting | uniform: std / mean | " + " | ".join(others) + " |"]
        lines += ["|---" * (len(others) + 3) + "|"]
        for process, weighting in PAIRS:
            cells = {
                r.density: r for r in rows if (r.process, r.score, r.weighting) == (process, score, weighting)
            }
            uniform = cells["uniform"]
            ratios = {density: f"{cells[density].std / uniform.std:.2f}" for density in DENSITIES}
            least = min(ratios.values(), key=float)
            marked = {d: f"**{v}**" if v == least else v for d, v in ratios.items()}
            spread = f"{uniform.std / uniform.mean:.2f}"
            if float(least) == 1.0:
                spread = f"**{spread}**"
            lines += [
                f"| {process} | {weighting} | {spread} | " + " | ".join(marked[d] for d in others) + " |"
            ]
        lines += [""]
    return "\n".join(lines)


def conclusion(rows: list[Row]) -> str:
    """Counts where importance sampling has lower variance than uniform times."""
    std = {(r.process, r.score, r.weighting, r.density): r.std for r in rows}
    lines = []
    for score in SCORES:
        ratios = {
            (process, weighting): std[process, score, weighting, f"optimal, {weighting}"]
            / std[process, score, weighting, "uniform"]
            for process, weighting in PAIRS
        }
        alike = sum(0.99 <= ratio <= 1.01 for ratio in ratios.values())
        won = sum(ratio < 0.99 for ratio in ratios.values())
        lost = [f"{p} {w} ({r:.1f} times)" for (p, w), r in ratios.items() if r > 1.01]
        lines.append(
            f"- *{score}*: a weighting's own density has less noise than uniform times in {won} of {len(PAIRS)} pairs, "
            f"as much in {alike}, more in {len(lost)}" + (f": {', '.join(lost)}." if lost else ".")
        )
    return "\n".join(lines)


def draw(rows: list[Row], path: pathlib.Path) -> None:
    """Draws a heat map of the standard deviations over those of uniform times."""
    figure, axes = plt.subplots(1, len(SCORES), figsize=(16, 8), sharey=True, layout="constrained")
    for axis, score in zip(axes, SCORES, strict=True):
        std = {(r.process, r.weighting, r.density): r.std for r in rows if r.score == score}
        ratio = np.array([[std[p, w, d] / std[p, w, "uniform"] for d in DENSITIES] for p, w in PAIRS])
        image = axis.imshow(np.log2(ratio), cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
        axis.set_xticks(range(len(DENSITIES)), list(DENSITIES), rotation=35, ha="right")
        axis.set_yticks(range(len(PAIRS)), [f"{p}, {w}" for p, w in PAIRS])
        axis.set_title(f"score: {score}")
        for (i, j), value in np.ndenumerate(ratio):
            colour = "white" if abs(np.log2(value)) > 2.5 else "black"
            text = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
            axis.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, label="std of one draw / that of uniform times")
    bar.set_ticks(range(-4, 5, 2), labels=["1/16", "1/4", "1", "4", "16"])
    figure.savefig(path, dpi=90)


def main() -> None:
    """Parses the options, measures and writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/time_densities"))
    parser.add_argument("--dims", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4000, help="training steps per process")
    parser.add_argument("--draws", type=int, default=2048, help="latents per time of the quadrature")
    parser.add_argument("--hardware", default=jax.devices()[0].device_kind, help="hardware named on the page")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    start = time.monotonic()
    rows = measure(options.dims, options.steps, options.draws)
    with (options.out / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(rows)
    draw(rows, options.out / "table.png")
    page = PAGE.format(
        command="python experiments/time_densities.py",
        seconds=time.monotonic() - start,
        hardware=options.hardware,
        date=datetime.date.today(),
        dims=options.dims,
        t_min=T_MIN,
        steps=options.steps,
        draws=options.draws,
        conclusion=conclusion(rows),
        tables=as_markdown(rows),
    )
    (options.out / "page.md").write_text(page)
    print(conclusion(rows))


if __name__ == "__main__":
    main()
