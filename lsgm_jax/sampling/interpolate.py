"""Images between samples, or between test images."""

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import Params
from lsgm_jax.conditioning.request import ConditionRequest
from lsgm_jax.data.pipeline import whole_split
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation import plots
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.sampling.failures import Failures
from lsgm_jax.sampling.run import Run
from lsgm_jax.solvers.sampler import draw_noise, slerp


def interpolate(
    run: Run,
    params: Params,
    *,
    between: str,
    pairs: int,
    points: int,
    seed: int,
    request: ConditionRequest,
) -> np.ndarray:
    """Returns a figure whose rows go from one image to another along a great circle of noise.

    Args:
        between: "noise" for random ends, or "test" for test images, encoded by the probability-flow ODE.
        pairs: rows.
        points: images per row, ends included.
        request: the condition of each row, from one end to the other.

    Raises:
        ConfigError: for data that are no images.
        NumericalError: for images that are not finite or run out of steps.
        ValueError: for an SDE solver between test images.
    """
    model, sampler, key = run.model, run.experiment.sampler, jax.random.key(seed)
    if len(model.data_shape) != 3:
        raise ConfigError(
            f"samples of shape {model.data_shape} are no images, and have no picture in between"
        )
    k_ends, k_decode = jax.random.split(key)
    of_rows = request(np.arange(pairs))
    along = lambda count: jax.tree.map(lambda values: np.repeat(values, count, axis=0), of_rows)
    if between == "test":
        x = jnp.asarray(whole_split(run.experiment.data, "test", limit=2 * pairs))
        encode = jax.jit(lambda params, batch: model.encode(params, batch, k_ends, sampler))
        ends = encode(params, Batch(x, along(2)))
    else:
        ends = draw_noise(sampler, model.process(params), k_ends, (2 * pairs, *model.latent_shape))
    first, last = (
        jax.tree.map(lambda z, half=half: jnp.repeat(z[half], points, axis=0), ends)
        for half in (slice(0, None, 2), slice(1, None, 2))
    )
    share = jnp.tile(jnp.linspace(0.0, 1.0, points), pairs)
    decode = jax.jit(lambda params, z_1, given: model.decode(params, z_1, k_decode, sampler, given))
    x, solution = decode(params, slerp(first, last, share), along(points))
    if (failures := Failures.among(solution.success, x)).total:
        raise failures.error("images")
    return plots.grid(np.asarray(x), points, model.labels)
