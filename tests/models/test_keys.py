"""No random key is used twice: JAX's own checker, on what every kind of model draws."""

import jax
import jax.numpy as jnp
import pytest

from lsgm_jax.config.factory import experiment
from lsgm_jax.config.load import load_config
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.solvers.grids import Linear
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler
from tests import tiny

CONDITIONAL = ("--config.conditioning.name=labels", "--config.conditioning.classes=10")
ODE = Sampler(method=METHODS["Heun"](), steps=Linear(steps=2), t_min=0.1)
CASES = {
    "lsgm": ("digits.py:quick", tiny.OVERRIDES),
    "lsgm of labels": ("digits.py:quick", [*tiny.OVERRIDES, *CONDITIONAL]),
    "lsgm-cld": ("digits.py:cld,quick", tiny.OVERRIDES),
    "sgm of points": ("cld_toy.py:quick", ()),
    "sgm": ("sgm_digits.py:quick", ("--config.score.channels=(8,)", "--config.score.attention=()")),
    "ldm of labels": ("ldm_digits.py:quick", ()),
    "ldm of holes": ("ldm_digits.py:quick", ("--config.conditioning.name=inpainting",)),
}


@pytest.fixture(params=CASES)
def planned(request):
    file, overrides = CASES[request.param]
    return experiment(load_config(str(tiny.ROOT / "configs" / file), list(overrides)))


def traced(function, *arguments):
    """The checker looks at the traced program."""
    with jax.debug_key_reuse(True):
        jax.jit(function).lower(*arguments)


def test_no_key_is_used_twice(planned):
    model, key = planned.model, jax.random.key(0)
    params = jax.eval_shape(model.init, key)
    x = jnp.zeros((2, *model.data_shape))
    condition = None if model.task else planned.conditioning.null(2)
    batch = Batch(x, condition)
    traced(model.init, key)
    traced(model.loss, params, batch, key)
    traced(lambda params, key: model.sample(params, key, 2, ODE), params, key)
    if model.bound is not None:
        traced(model.bound, params, batch, key)


def test_conditioner_and_network_draw_from_different_keys(planned, monkeypatch):
    """The checker above does not see `fold_in`, which is how Flax draws initial values."""
    prior, keys = planned.model.prior, []

    def record(drawn):
        init = type(drawn).init

        def recorded(self, key, *inputs):
            keys.append(tuple(jax.random.key_data(key).tolist()))
            return init(self, key, *inputs)

        monkeypatch.setattr(type(drawn), "init", recorded)

    record(prior.net)
    record(prior.conditioning)
    prior.init(jax.random.key(0))
    assert len(keys) == len(set(keys)) == 2


def test_the_checker_finds_a_key_that_is_used_twice():
    def twice(key):
        return jax.random.normal(key) + jax.random.uniform(key)

    with pytest.raises(jax.errors.KeyReuseError):
        traced(twice, jax.random.key(0))
