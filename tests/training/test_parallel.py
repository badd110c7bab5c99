"""The same numbers on one device and on eight; in a process of its own, where the host pretends to have eight."""

import os
import subprocess
import sys

PROGRAM = """
import jax, numpy as np, optax
from jax.sharding import AxisType
from lsgm_jax.training import parallel
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import Average, make_step
from tests import tiny

assert jax.device_count() == 8
model = tiny.model()
optimiser = optax.sgd(1e-3)  # Adam would blow rounding up to the size of the learning rate
params, results = model.init(jax.random.key(0)), []
for count in (1, 8):
    mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
    step = make_step(tiny.at_full_kl(model.loss), optimiser, Average(0.9))
    step = parallel.compile_step(step, mesh)
    state = jax.device_put(create_state(params, optimiser), parallel.replicated(mesh))
    key = jax.device_put(jax.random.key(1), parallel.replicated(mesh))
    for seed in range(3):
        state, metrics = step(state, parallel.put_batch(mesh, tiny.batch(seed=seed)), key)
    results.append((jax.device_get(state.params), float(metrics["nelbo"])))

np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
jax.tree.map(close, results[0][0], results[1][0])
moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), results[0][0], jax.device_get(params))
assert max(jax.tree.leaves(moved)) > 1e-3, moved

mesh = parallel.data_mesh()
try:
    parallel.put_batch(mesh, np.zeros((9, 2)))
except ValueError as error:
    assert "9 images does not divide over 8 devices" in str(error), error
else:
    raise AssertionError("a batch of 9 went on 8 devices")
print("one equals eight")
"""


def test_one_device_equals_eight():
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "one equals eight" in done.stdout
