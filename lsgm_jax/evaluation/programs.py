"""The programs that training, sampling and evaluation run, traced for any devices from shapes alone.

The devices need not be there: with those of a topology the programs can be compiled ahead of time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lsgm_jax.arrays import Condition
from lsgm_jax.config.factory import Experiment
from lsgm_jax.errors import ConfigError
from lsgm_jax.evaluation.likelihood import ode_terms
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.time_densities import Stratum
from lsgm_jax.sampling.sample import decoder
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.training.devices import OverDevices, shapes_on
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.sharding import Sharded
from lsgm_jax.training.step import make_step
from lsgm_jax.training.train import check_devices

Devices = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
        trace: traces it.
        rows: samples per call.
        devices: number of devices.
        trips: how often its loops run whose number XLA does not know.
        steps: how often the schedule runs it; 0 if it is in none.
        note: what is to be said about the figures.
    """

    trace: Callable[[], Any]
    rows: int
    devices: int
    trips: int = 1
    steps: int = 0
    note: str = ""


def step_of(planned: Experiment, devices: Devices, name: str | None = None) -> Program:
    """Returns the training step of a stage.

    Raises:
        ConfigError: for an unknown stage, or a batch that the devices cannot share.
    """
    if not isinstance(planned.parallel, Sharded):
        raise ConfigError(
            "pmap compiles for the devices at hand alone: choose config.parallel.name='data' or 'fsdp'"
        )
    launcher = dataclasses.replace(planned.parallel, devices=devices)
    check_devices(dataclasses.replace(planned, parallel=launcher))
    model, rows = planned.model, planned.data.batch_size
    stages = {stage.name: stage for stage in planned.training.stages(Data.without(model.data_shape))}
    if name is not None and name not in stages:
        raise ConfigError(f"stage {name!r} is none of {', '.join(stages)}")
    stage = stages[name or list(stages)[-1]]
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(planned.training.init(stage.name), key)
    like = jax.eval_shape(stage.first_state, params, key)
    mesh = launcher.mesh
    everywhere, split = (
        NamedSharding(mesh, spec) for spec in (PartitionSpec(), PartitionSpec(mesh.axis_names))
    )
    state = jax.tree.map(
        lambda leaf, sharding: leaf.update(sharding=sharding), like, launcher.shardings(like)
    )
    batch = Batch(_image_shapes(planned, rows), None if model.task else _condition_shapes(planned, rows))
    step = make_step(
        launcher.spread(stage.loss),
        stage.optimiser,
        stage.ema,
        grad_accum_steps=planned.training.train.grad_accum_steps,
    )
    call: Any = launcher.compile(step, like)
    trace = lambda: call.trace(state, shapes_on(batch, split), shapes_on(key, everywhere))
    return Program(trace, rows, len(devices), steps=stage.steps)


def sampler_of(planned: Experiment, devices: Devices) -> Program:
    """Returns the solve of a batch of noise to data."""
    model, sampler = planned.model, planned.sampler
    noise = lambda params, key: model.draw_noise(params, key, rows, sampler)[0]
    rows, trips, note = _evaluation_size(planned, devices)
    key, mesh = jax.eval_shape(lambda: jax.random.key(0)), _evaluation_mesh(devices)
    params = jax.eval_shape(model.init, key)
    given = jax.eval_shape(noise, params, key), _condition_shapes(planned, rows)
    trace = lambda: decoder(model, sampler).trace(mesh, params, given, key)
    return Program(trace, rows, len(devices), trips, note=note)


def likelihood_of(planned: Experiment, devices: Devices) -> Program:
    """Returns the likelihood of a batch along the probability-flow ODE.

    Raises:
        ConfigError: if the model gives none.
    """
    model = planned.model
    if model.bound is None or planned.sampler.method.dynamics != "ode":
        raise ConfigError("likelihoods take a model that has them, and a solver of ODEs")
    rows, trips, note = _evaluation_size(planned, devices)
    key, mesh = jax.eval_shape(lambda: jax.random.key(0)), _evaluation_mesh(devices)
    params = jax.eval_shape(model.init, key)
    batch = Batch(_image_shapes(planned, rows), _condition_shapes(planned, rows))
    stratum = jax.eval_shape(lambda: Stratum(jnp.int32(0), jnp.int32(1)))
    trace = lambda: OverDevices(ode_terms(planned)).trace(mesh, params, batch, key, stratum)
    return Program(trace, rows, len(devices), trips, note=note)


def _evaluation_size(planned: Experiment, devices: Devices) -> tuple[int, int, str]:
    """Returns samples per call, steps of the solver, and a note about these."""
    size, steps = planned.evaluation.batch_size, planned.sampler.steps
    rows = size + -size % len(devices)
    if isinstance(steps, Adaptive):
        return rows, 1, "one step of the adaptive solver, whose number is not known"
    return rows, steps.steps, f"{steps.steps} steps"


def _evaluation_mesh(devices: Devices) -> Mesh:
    """Returns the mesh of sampling and evaluation."""
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def _image_shapes(planned: Experiment, rows: int) -> Any:
    """Returns the shape of a batch of data."""
    return jax.ShapeDtypeStruct((rows, *planned.model.data_shape), jnp.float32)


def _condition_shapes(planned: Experiment, rows: int) -> Condition:
    """Returns the shapes of the conditions of a batch; None without conditions."""
    if planned.model.task is not None:
        key = jax.eval_shape(lambda: jax.random.key(0))
        return jax.eval_shape(planned.model.task.draw, key, _image_shapes(planned, rows))
    return jax.eval_shape(lambda: planned.conditioning.null(rows))
