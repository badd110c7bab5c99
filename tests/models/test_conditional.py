"""Conditions and guidance where everything is known: a class is a Gaussian, and the network its exact score."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from lsgm_jax.conditioning.images import ConcatMaps
from lsgm_jax.conditioning.labels import Labels
from lsgm_jax.conditioning.protocol import Context, encode_condition
from lsgm_jax.conditioning.text import Texts
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.models.sgm import SGM
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.time_densities import Uniform
from lsgm_jax.objectives.weightings import unweighted
from lsgm_jax.processes.vp import VP
from lsgm_jax.solvers.grids import LogSNR
from lsgm_jax.solvers.integrate import Adaptive
from lsgm_jax.solvers.likelihood import Divergence
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.sampler import Sampler

PROCESS, STD, DIMS = VP(), 0.5, 2
MEANS = np.array([[0.0, 1.0], [-2.0, 0.5], [1.5, -1.0], [0.25, 0.25]], np.float32)  # the last is nothing's
CALLS = []


class Exact(nn.Module):
    """The noise in data that are Gaussian around the token, with standard deviation `STD`; notes its batches' sizes."""

    @nn.compact
    def __call__(self, z_t, t, context, *, deterministic):
        CALLS.append(len(z_t))
        scale = self.param("scale", nn.initializers.ones, ())  # a network has parameters
        alpha = jnp.exp(-0.5 * PROCESS.int_beta(jnp.zeros_like(t), t))[:, None]
        variance = 1.0 - alpha**2
        return scale * jnp.sqrt(variance) * (z_t - alpha * context[:, 0]) / (alpha**2 * STD**2 + variance)


def model(dropout=0.0):
    labels = Labels(classes=len(MEANS) - 1, width=DIMS, dropout=dropout)
    prior = ScoreModel(
        shape=(DIMS,),
        process=PROCESS,
        net=Network(Exact()),
        objective=Objective(prior_weighting=unweighted, density=Uniform(t_min=1e-3)),
        conditioning=labels,
    )
    return SGM(prior=prior)


@pytest.fixture(scope="module")
def params():
    fresh = model().init(jax.random.key(0))
    assert fresh["conditioner"]["table"]["embedding"].shape == MEANS.shape
    return fresh | {"conditioner": {"table": {"embedding": jnp.asarray(MEANS)}}}


def transported(z_1, means):
    """Where the probability flow carries noise, for Gaussian data with these means (D5): quantiles keep their place."""
    return means + STD * (z_1 - ALPHA * means) / STD_1


# Of z_1: what is left of the data, and the standard deviation.
ALPHA = np.exp(-0.5 * float(PROCESS.int_beta(jnp.zeros(()), jnp.ones(()))))
STD_1 = np.sqrt(ALPHA**2 * STD**2 + 1.0 - ALPHA**2)


Z_1 = jax.random.normal(jax.random.key(0), (6, DIMS))
LABELS = np.array([0, 1, 2, 2, 1, 0])
SAMPLERS = {
    **{per: Sampler(steps=Adaptive(rtol=1e-5, atol=1e-5, per=per)) for per in ("sample", "batch", "hardest")},
    "grid": Sampler(method=METHODS["DPMSolverPP"](), steps=LogSNR(steps=60)),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_every_sample_follows_its_own_condition(params, sampler, guidance):
    """Guidance moves the mean, being linear in it: from nothing's through the class's and beyond."""
    sampler = dataclasses.replace(sampler, guidance=guidance)
    z_0, solution = jax.jit(model().decode, static_argnums=3)(params, Z_1, jax.random.key(0), sampler, LABELS)
    means = MEANS[-1] + guidance * (MEANS[LABELS] - MEANS[-1])
    assert solution.success.all()
    np.testing.assert_allclose(z_0, transported(Z_1, means), atol=5e-3)


def test_without_a_condition_nothing_is_asked_for(params):
    z_0, _ = model().decode(params, Z_1, jax.random.key(0), SAMPLERS["grid"])
    np.testing.assert_allclose(z_0, transported(Z_1, MEANS[-1]), atol=5e-3)


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 6), (0.0, 6), (2.0, 12)])
def test_guidance_is_one_call_of_twice_the_batch(params, guidance, rows):
    CALLS.clear()
    sampler = dataclasses.replace(SAMPLERS["grid"], guidance=guidance)
    jax.eval_shape(lambda p: model().decode(p, Z_1, jax.random.key(0), sampler, LABELS), params)
    assert set(CALLS) == {rows}


def test_densities_are_those_of_the_condition(params):
    """By the ODE, steps of its own for each sample, whose prior does not know what little is left of the mean."""
    x = MEANS[LABELS] + STD * Z_1
    score = jax.jit(model().ode_bound, static_argnums=(3, 4))
    exact = Divergence(name="exact")
    found = score(params, Batch(x, LABELS), jax.random.key(0), SAMPLERS["sample"], exact)
    z_1 = ALPHA * MEANS[LABELS] + STD_1 / STD * (x - MEANS[LABELS])
    expected = stats.norm.logpdf(z_1).sum(axis=1) + DIMS * np.log(STD_1 / STD)
    np.testing.assert_allclose(-found.nelbo, expected, atol=1e-3)


def test_codes_of_data_lead_back_to_it(params):
    x = MEANS[LABELS] + STD * Z_1
    sampler, key = SAMPLERS["sample"], jax.random.key(0)
    z_1 = jax.jit(model().encode, static_argnums=3)(params, Batch(x, LABELS), key, sampler)
    again, _ = jax.jit(model().decode, static_argnums=3)(params, z_1, key, sampler, LABELS)
    np.testing.assert_allclose(again, x, atol=1e-3)


def test_the_exact_score_has_the_least_loss_only_with_the_right_condition(params):
    """The loss is the noise's variance given z_t and class, in closed form; a wrong class costs more."""
    x = MEANS[LABELS.repeat(2000)] + STD * np.random.default_rng(1).normal(size=(12000, DIMS))
    loss = jax.jit(model().loss)
    right, _ = loss(params, Batch(jnp.asarray(x, jnp.float32), LABELS.repeat(2000)), jax.random.key(0))
    wrong, _ = loss(
        params, Batch(jnp.asarray(x, jnp.float32), (LABELS.repeat(2000) + 1) % 3), jax.random.key(0)
    )
    t = np.linspace(1e-3, 1.0, 20001)
    alpha2 = np.exp(-np.asarray(PROCESS.int_beta(jnp.zeros(len(t)), jnp.asarray(t, jnp.float32)), float))
    left = DIMS * alpha2 * STD**2 / (alpha2 * STD**2 + 1.0 - alpha2)
    np.testing.assert_allclose(right, np.trapezoid(left, t) / (t[-1] - t[0]), rtol=0.03)
    assert wrong > 1.5 * right


def test_conditions_are_dropped_as_often_as_they_should(params):
    """In training alone, and each sample's for itself."""
    labels, count = jnp.zeros(4000, jnp.int32), 4000
    means = lambda key, dropout: encode_condition(
        model(dropout).prior.conditioning, params, labels, count, key
    ).tokens[:, 0]
    is_null = lambda tokens: np.all(np.asarray(tokens) == MEANS[-1], axis=1)
    assert not is_null(means(None, 0.3)).any()
    assert not is_null(means(jax.random.key(0), 0.0)).any()
    assert is_null(means(jax.random.key(0), 1.0)).all()
    dropped = is_null(means(jax.random.key(0), 0.3)).sum()
    assert stats.binomtest(int(dropped), count, 0.3).pvalue > 1e-4


def test_a_loss_without_conditions_is_that_of_dropping_all(params):
    x, key = jnp.asarray(Z_1), jax.random.key(0)
    none, _ = model().loss(params, Batch(x), key)
    dropped, _ = model(dropout=1.0).loss(params, Batch(x, jnp.asarray(LABELS)), key)
    np.testing.assert_array_equal(none, dropped)


def test_texts_see_every_piece_and_its_place():
    texts = Texts(pieces=20, length=6, width=8, layers=1, heads=2, head_width=4)
    params = texts.init(jax.random.key(0))
    pieces = jnp.array([[2, 7, 8, 3, 0, 0], [2, 8, 7, 3, 0, 0], [2, 7, 8, 3, 0, 0]], jnp.int32)
    tokens = texts.context(params, pieces).tokens
    assert tokens.shape == (3, 6, 8)
    np.testing.assert_allclose(tokens[0], tokens[2], atol=1e-6)
    assert np.abs(tokens[0] - tokens[1]).max() > 1e-3
    np.testing.assert_array_equal(texts.null(2), [[2, 3, 0, 0, 0, 0]] * 2)


def test_maps_lie_beside_the_latent():
    z_t, t = jnp.ones((2, 4, 4, 3)), jnp.zeros(2)
    beside = ConcatMaps(shape=(4, 4, 2))
    seen, _ = beside.context({}, 2.0 * jnp.ones((2, 4, 4, 2))).inputs(z_t, t)
    np.testing.assert_array_equal(seen, np.broadcast_to([1, 1, 1, 2, 2], (2, 4, 4, 5)))
    assert len(Context().inputs(z_t, t)) == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Labels(classes=0), "classes=0"),
        (lambda: Labels(classes=3, dropout=1.5), "dropout=1.5"),
        (lambda: Texts(pieces=0), "pieces=0"),
        (lambda: Texts(pieces=100, length=1), "length=1"),
        (lambda: Texts(pieces=100, empty=(101, 102)), r"empty=\(101, 102\)"),
        (lambda: Sampler(guidance=-1.0), "guidance=-1.0"),
    ],
)
def test_impossible_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
