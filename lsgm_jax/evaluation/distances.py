"""How far two sets of samples are apart, without a network that judges them."""

import numpy as np
from scipy.spatial.distance import cdist


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| with Euclidean norms (Szekely and Rizzo 2013), estimated without bias.

    Zero for equal distributions, where estimates scatter around it; in the units of the data.

    Args:
        x, y: at least two samples each, [n, ...] and [m, ...].
    """
    x, y = (z.reshape(len(z), -1).astype(np.float64) for z in (x, y))
    within = sum(cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y))
    return float(2.0 * cdist(x, y).mean() - within)
