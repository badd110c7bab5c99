"""Takes a few steps with every launcher on the available devices; `test_parallel.py` runs it on one and on eight.

`python -m tests.training.launchers OUT [CASE ...]` writes the parameters, by case and name, to the .npz file OUT.
"""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsgm_jax.arrays import mean_over_devices
from lsgm_jax.autoencoders.nvae_cells import BatchNorm
from lsgm_jax.data.pipeline import training_batches
from lsgm_jax.nn.network import Aux
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.training.devices import place, replicated
from lsgm_jax.training.penalty import Penalty, first_memory, penalise
from lsgm_jax.training.sharding import Replicated, Sharded, whole
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, make_step, scan_steps
from tests import toy

STEPS, BATCH = 6, 16
MODEL = toy.lsgm()
PENALTIES = {"vae": Penalty(weight=1e-2)}


def noise_free(params, batch, context):
    """A loss without noise, of both networks, with a running mean and a coefficient of the global batch."""
    net, running = params["vae"]["net"], params["vae"]["state"]["mean"]
    mean = batch.x @ net["encode"]
    features = mean @ net["decode"] + running
    eps = MODEL.prior.eps_net(params)(mean, jnp.full(len(batch.x), 0.5))
    coefficient = mean_over_devices(jnp.mean(mean**2))
    value = jnp.mean((features - batch.x) ** 2) + coefficient * jnp.mean((eps - mean) ** 2)
    moved = 0.9 * running + 0.1 * mean_over_devices(jnp.mean(features))
    return value, Aux({"nelbo": value}, {"vae": {"state": {"mean": moved}}})


def separable(params, batch, context):
    """A mean over independent samples, which does not depend on the split into micro-batches."""
    net = params["vae"]["net"]
    mean = batch.x @ net["encode"]
    eps = MODEL.prior.eps_net(params)(mean, jnp.full(len(batch.x), 0.5))
    value = jnp.mean((mean @ net["decode"] - batch.x) ** 2) + jnp.mean((eps - mean) ** 2)
    return value, Aux({"nelbo": value}, {})


def with_noise(params, batch, context):
    """The loss of the model."""
    return MODEL.loss(params, batch, context.key, KLWeight(0.5))


noisy = penalise(with_noise, PENALTIES)  # passes singular vectors from step to step


CASES = {  # loss, launcher, micro-batches, steps per call
    "data": (noise_free, whole(), 1, 1),
    "fsdp": (noise_free, Sharded(smallest=1), 1, 1),
    "fsdp in pairs": (noise_free, Sharded(shards=2, smallest=1), 1, 1),
    "pmap": (noise_free, Replicated(), 1, 1),
    "separable data": (separable, whole(), 1, 1),
    "separable accumulated": (separable, whole(), 2, 1),
    "separable fsdp accumulated": (separable, Sharded(smallest=1), 2, 1),
    "scan": (noise_free, whole(), 1, 3),
    "pmap scan": (noise_free, Replicated(), 1, 2),
    "noisy data": (noisy, whole(), 1, 1),
    "noisy fsdp": (noisy, Sharded(smallest=1), 1, 1),
    "noisy pmap": (noisy, Replicated(), 1, 1),
}


def train(name, loss, launcher, micro_batches, steps_per_call):
    """Returns parameters and EMA parameters after the steps, by case and name."""
    params = MODEL.init(jax.random.key(0))
    # A small eps would amplify rounding errors to the size of the learning rate.
    optimiser = optax.adamw(1e-2, eps=1e-3)
    memory = ()
    if loss is noisy:
        example = Batch(jnp.zeros((1, *MODEL.data_shape)))
        memory = first_memory(with_noise, PENALTIES, example)(params, jax.random.key(2))
    state = create_state(params, optimiser, memory)
    step = make_step(launcher.spread(loss), optimiser, EMA(0.9), grad_accum_steps=micro_batches)
    step = scan_steps(step, steps_per_call)
    step = launcher.compile(step, state)
    shardings = launcher.shardings(state)
    state = jax.tree.map(lambda leaf, at: jax.device_put(np.asarray(leaf), at), state, shardings)
    key = place(launcher.mesh, jax.random.key(1))
    samples = toy.Samples(40)
    samples.spec = types.SimpleNamespace(batch_size=BATCH, source="bits")
    batches = training_batches(samples, seed=3)
    for _ in range(STEPS // steps_per_call):
        state, _ = step(state, launcher.put([Batch(next(batches)["x"]) for _ in range(steps_per_call)]), key)
    sharded = any("shards" in leaf.sharding.spec for leaf in jax.tree.leaves(state.params))
    assert sharded == ("fsdp" in name and jax.device_count() > 1)
    gather = jax.jit(lambda state: (state.params, state.ema), out_shardings=replicated(launcher.mesh))
    leaves = jax.tree_util.tree_leaves_with_path(gather(state))
    return {f"{name}: {jax.tree_util.keystr(path)}": np.asarray(leaf) for path, leaf in leaves}


def refuse_uneven():
    """Every launcher refuses a batch that does not divide evenly over the devices, in one line."""
    rows = jax.device_count() + 1
    for launcher in (whole(), Sharded(), Replicated()):
        with pytest.raises(
            ValueError, match=f"{rows} images does not divide over {jax.device_count()} devices"
        ):
            launcher.put([np.zeros((rows, 2))])


def compare_batch_statistics():
    """Under `pmap` as under `jit` they are those of the global batch, as is the count in the running variance."""
    norm, devices = BatchNorm(), jax.device_count()
    x = np.random.default_rng(0).normal(size=(2 * devices, 2, 2, 3)).astype(np.float32)
    variables = norm.init(jax.random.key(0), jnp.asarray(x), train=True)

    def normalise(variables, x):
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    expected, moved = jax.jit(normalise)(variables, x)
    on_all = jax.pmap(normalise, axis_name="data", in_axes=(None, 0), out_axes=(0, None))
    found, also_moved = on_all(variables, x.reshape(devices, 2, 2, 2, 3))
    np.testing.assert_allclose(found.reshape(x.shape), expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), moved, also_moved)


def main(out, cases):
    """Trains the named cases, or all."""
    if jax.device_count() > 1 and jax.process_count() == 1:
        refuse_uneven()
        compare_batch_statistics()
    arrays = {}
    for name in cases or CASES:
        arrays |= train(name, *CASES[name])
    if jax.process_index() == 0:
        np.savez(out, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
