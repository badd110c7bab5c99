"""Latent diffusion trained end to end against pixel-space diffusion, at equal compute.

python -m experiments.latent_or_pixels --out=runs/trials --size=cpu --seeds=0,1,2

Compute is XLA's count of floating-point operations over all training steps. The two stages of the LSGM set the budget,
and the pixel-space model, with a network of the same widths, trains for as many steps as the budget allows. Both NELBOs
bound the log-likelihood of the same grey levels, in pixel space by uniform dequantisation. Writes latent_or_pixels.csv,
.png and .md.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.trials import (
    SIZES,
    Setup,
    Trial,
    command_line,
    conclude,
    draw_by_trial,
    file_of,
    load,
    paired,
    run_all,
    summary,
    write_table,
)
from lsgm_jax.config.factory import experiment
from lsgm_jax.config.registry import Config
from lsgm_jax.evaluation.model_size import flops
from lsgm_jax.objectives.bound import Batch

# The same widths for both; the pixel-space network halves its maps where the autoencoder does.
PIXELS: dict[str, Setup] = {
    "quick": ("sgm_digits.py:quick", {"score.channels": (8, 8), "eval.draws": 2, "eval.samples": 64}),
    "cpu": ("sgm_digits.py", {"score.channels": (32, 32), "train.eval_every": 500, "eval.samples": 1000}),
    "gpu": (
        "cld_cifar10.py",
        {
            "process.name": "vp",
            "objective.mixed_score": "gaussian",
            "score.channels": 128,
            "score.blocks": 2,
            "eval.samples": 10_000,
        },
    ),
}
KEYS = {"nelbo": "test NELBO, nats", "fid": "FID", "nfe": "NFE of a sample", "train_seconds": "training, s"}


def training_flops(config: Config) -> int:
    """Counts the floating-point operations of all training steps by XLA."""
    planned = experiment(config)
    model, data, steps = planned.model, planned.data, planned.training.steps
    batch = jax.eval_shape(lambda: Batch(jnp.zeros((data.batch_size, *model.data_shape))))
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(model.init, key)

    def of(loss: Callable[..., Any], params: Any) -> int:
        return flops(jax.grad(loss, has_aux=True), params, batch, key)

    total = steps(model.stages[-1]) * of(model.loss, params)
    vae: Any = model.autoencoder
    if vae is not None:
        total += steps("vae") * of(vae.loss, params["vae"])
    return total


def main() -> None:
    """Trains both models and compares them."""
    options = command_line(__doc__, "latent_or_pixels")
    latent, pixels = SIZES[options.size], PIXELS[options.size]
    budget, spent = training_flops(load(latent, {})), training_flops(load(pixels, {"train.steps": 1000}))
    steps = max(budget * 1000 // spent, 1)
    rows = run_all([Trial("lsgm", {})], options, ("nelbo", "fid"))
    rows += run_all([Trial("pixels", {"train.steps": steps})], options, ("nelbo", "fid"), pixels)
    draw_by_trial(rows, KEYS, file_of(options, "png"))
    lines = [
        f"Each trains for {budget:.3g} operations per run; the pixel-space diffusion takes {steps} steps.",
        *(
            f"lsgm less pixels, {heading}: {paired(rows, 'lsgm', 'pixels', key)}."
            for key, heading in KEYS.items()
        ),
    ]
    write_table(file_of(options, "csv"), rows)
    conclude(options, summary(rows, KEYS), lines)


if __name__ == "__main__":
    main()
