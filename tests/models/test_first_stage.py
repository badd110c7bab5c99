"""First stages and their gan_loss, and the prior of their latents, with networks of a layer or two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lsgm_jax.autoencoders.bottlenecks import CodebookBottleneck, GaussianBottleneck
from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.quantiser import Quantiser
from lsgm_jax.conditioning.images import ConcatMaps, Inpainting, Masked, Upscaling, rectangles
from lsgm_jax.models.first_stage import AdversarialTraining, FirstStage, psnr
from lsgm_jax.models.ldm import LDM
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.nn.network import Network, StatefulNetwork
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.gan import GANLoss, KLFirstStage, VQFirstStage, generator_loss, hinge_loss
from lsgm_jax.objectives.time_densities import Uniform
from lsgm_jax.objectives.weightings import unweighted
from lsgm_jax.processes.vp import VP
from tests.tiny import assert_trees_equal

SIDE, LATENT = 8, 3
X = jnp.tanh(jax.random.normal(jax.random.key(9), (4, SIDE, SIDE, 1)))
KEY = jax.random.key(0)


class Halve(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, *, deterministic):
        return nn.Conv(self.features, (2, 2), strides=2)(x)


class Double(nn.Module):
    @nn.compact
    def __call__(self, z, *, deterministic):
        return nn.Conv(1, (3, 3), name="image")(jnp.tanh(nn.ConvTranspose(4, (2, 2), strides=(2, 2))(z)))


class Score(nn.Module):
    @nn.compact
    def __call__(self, z_t, t, *, deterministic):
        return nn.Conv(LATENT, (3, 3))(z_t) * t[:, None, None, None]


BOTTLENECKS = {
    "kl": (GaussianBottleneck(latent_channels=LATENT), KLFirstStage(kl_weight=1e-2)),
    "vq": (CodebookBottleneck(quantiser=Quantiser(entries=5, width=LATENT)), VQFirstStage()),
}


def first_stage(name="kl"):
    bottleneck, _ = BOTTLENECKS[name]
    return FirstStage(
        image_shape=(SIDE, SIDE, 1),
        latent_shape=(SIDE // 2, SIDE // 2, LATENT),
        encoder=Network(Halve(bottleneck.features)),
        decoder=Network(Double()),
        bottleneck=bottleneck,
    )


def training(name="kl", perceptual=None, **gan_loss):
    return AdversarialTraining(
        first_stage=first_stage(name),
        discriminator=StatefulNetwork(PatchDiscriminator(channels=4, layers=1)),
        criterion=BOTTLENECKS[name][1],
        gan_loss=GANLoss(**({"start": 10, "weight": 0.7} | gan_loss)),
        perceptual=perceptual,
        perceptual_weight=2.0,
    )


def differentiate(trained, params, step):
    return jax.jit(jax.value_and_grad(trained.loss, has_aux=True))(params, Batch(X), KEY, step)


def norm(tree):
    return float(jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree))))


@pytest.mark.parametrize("name", ["kl", "vq"])
def test_each_network_learns_from_its_own_loss_alone(name):
    """The gradients are those of generator and discriminator loss, each taken with the other held fixed."""
    trained = training(name)
    params = jax.jit(trained.init)(jax.random.key(1))
    (_, aux), gradient = differentiate(trained, params, 10)
    stage, judge = trained.first_stage, trained.discriminator

    def of_discriminator(own):
        x_hat = trained.first_stage.autoencode(params["first_stage"], X, KEY, train=True).x_hat
        logits = [judge.apply(own, x, train=True)[0] for x in (X, jax.lax.stop_gradient(x_hat))]
        return hinge_loss(*logits)

    def of_autoencoder(own):
        sampled, x_hat = trained.first_stage.autoencode(own, X, KEY, train=True)
        fooled = generator_loss(judge.apply(params["discriminator"], x_hat, train=True)[0])
        cost = trained.criterion.reconstruction(jnp.abs(X - x_hat))
        weight = 0.7 * aux.metrics["adaptive_weight"]
        return trained.criterion.objective(cost, sampled.regularization_loss, weight * fooled)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    jax.tree.map(
        close, gradient["discriminator"], jax.jit(jax.grad(of_discriminator))(params["discriminator"])
    )
    jax.tree.map(close, gradient["first_stage"], jax.jit(jax.grad(of_autoencoder))(params["first_stage"]))
    assert stage.latent_shape == (4, 4, 3)


def test_the_game_begins_at_its_step():
    """Before it, no gradient reaches the discriminator, and the autoencoder's has no trace of it."""
    trained = training()
    params = jax.jit(trained.init)(jax.random.key(1))
    (_, before), quiet = differentiate(trained, params, 9)
    (_, after), played = differentiate(trained, params, 10)
    assert norm(quiet["discriminator"]) == 0.0
    assert norm(played["discriminator"]) > 0.0
    assert norm(jax.tree.map(jnp.subtract, quiet["first_stage"], played["first_stage"])) > 0.0
    assert before.metrics["adaptive_weight"] == after.metrics["adaptive_weight"] > 0.0


def test_the_adaptive_weight_balances_the_gradients_at_the_last_layer():
    trained = training("kl", perceptual=lambda a, b: jnp.mean((a - b) ** 2, axis=(1, 2, 3)))
    params = jax.jit(trained.init)(jax.random.key(1))
    (_, aux), _ = differentiate(trained, params, 10)

    def terms(own):
        x_hat = trained.first_stage.autoencode(own, X, KEY, train=True).x_hat
        fooled = generator_loss(trained.discriminator.apply(params["discriminator"], x_hat, train=True)[0])
        per_image = jnp.sum(jnp.abs(X - x_hat), axis=(1, 2, 3))
        per_image += 2.0 * SIDE**2 * jnp.mean((X - x_hat) ** 2, axis=(1, 2, 3))
        return jnp.mean(per_image), fooled

    of_cost, of_gan_loss = jax.jit(jax.jacrev(terms))(params["first_stage"])
    last = lambda tree: norm(tree["decoder"]["image"]["kernel"])
    np.testing.assert_allclose(
        aux.metrics["adaptive_weight"], last(of_cost) / (last(of_gan_loss) + 1e-4), rtol=1e-4
    )


def test_running_statistics_of_the_discriminator_are_carried():
    trained = training()
    params = jax.jit(trained.init)(jax.random.key(1))
    (_, aux), _ = differentiate(trained, params, 10)
    moved = aux.state["discriminator"]["state"]
    assert jax.tree.structure(moved) == jax.tree.structure(params["discriminator"]["state"])
    assert norm(jax.tree.map(jnp.subtract, moved, params["discriminator"]["state"])) > 0.0


def test_decibels_are_those_of_the_mean_squared_error():
    """Of values that span 2; what leaves [-1, 1] is cut off."""
    np.testing.assert_allclose(psnr(jnp.zeros((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 0.2)), 20.0, rtol=1e-6)
    np.testing.assert_allclose(
        psnr(jnp.full((1, 2, 2, 1), 0.8), jnp.full((1, 2, 2, 1), 7.0)), 20.0, rtol=1e-5
    )


def test_a_codebook_rounds_in_the_decoder_and_not_before():
    stage = first_stage("vq")
    params = stage.init(jax.random.key(1))
    z = stage.encode(params, X, KEY)
    rounded = stage.bottleneck.decode(params, z)
    assert len(np.unique(np.asarray(rounded).reshape(-1, LATENT), axis=0)) <= 5
    assert not np.allclose(z, rounded)
    np.testing.assert_array_equal(stage.decode(params, z), stage.decode(params, rounded))
    np.testing.assert_array_equal(stage.autoencode(params, X, KEY).x_hat, stage.decode(params, z))


# The prior


def latent_model(scale=0.0, task=None, dropout=0.0):
    shape = (SIDE // 2, SIDE // 2, LATENT)
    beside = (
        {} if task is None else {"conditioning": ConcatMaps(shape=(*shape[:2], task.channels(LATENT, 1)))}
    )
    prior = ScoreModel(
        shape=shape,
        process=VP(),
        net=Network(Score()),
        objective=Objective(prior_weighting=unweighted, density=Uniform(t_min=1e-3)),
        **beside,
    )
    return LDM(first_stage=first_stage(), prior=prior, scale=scale, task=task)


def test_nothing_of_the_first_stage_moves():
    """Neither by the gradient nor by what the loss carries on."""
    model = latent_model()
    params = model.init(jax.random.key(1))
    gradient, aux = jax.jit(jax.grad(model.loss, has_aux=True))(params, Batch(X), KEY)
    assert norm(gradient["score_net"]) > 0.0
    assert norm((gradient["first_stage"], gradient["scale"])) == 0.0
    assert_trees_equal(
        {name: aux.state[name] for name in ("first_stage", "scale")},
        {name: params[name] for name in ("first_stage", "scale")},
    )


def test_the_scale_makes_latents_of_unit_deviation_and_is_undone():
    model = latent_model()
    params = model.adopt_scale(model.init(jax.random.key(1)), X, KEY)
    z = model.latents(params, X, KEY)
    np.testing.assert_allclose(np.std(z, ddof=1), 1.0, rtol=1e-5)
    unscaled = model.first_stage.encode(params["first_stage"], X, KEY)
    np.testing.assert_allclose(
        model.decode_latents(params, z, KEY),
        model.first_stage.decode(params["first_stage"], unscaled),
        atol=1e-5,
    )
    given = latent_model(scale=0.18215)
    params = given.adopt_scale(given.init(jax.random.key(1)), X, KEY)
    np.testing.assert_allclose(params["scale"], 0.18215, rtol=1e-6)


def test_the_prior_learns_what_an_sgm_of_the_latents_would():
    model = latent_model(scale=2.0)
    params = model.init(jax.random.key(1))
    k_first_stage, k_prior = jax.random.split(KEY)
    k_encode, _ = jax.random.split(k_first_stage)
    z = 2.0 * model.first_stage.encode(params["first_stage"], X, k_encode)
    found, _ = model.loss(params, Batch(X), KEY)
    expected, _ = model.prior.loss(params, Batch(z), k_prior)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


# Images to complete


def test_a_prior_for_holes_is_not_told_what_is_in_them():
    task = Inpainting()
    mask = rectangles(jax.random.key(2), X.shape, 2, 0.25, 0.5)
    encode = lambda x: jnp.repeat(x[:, ::2, ::2], LATENT, axis=-1)
    maps = task.maps(encode, Masked(X, mask), (4, 4, LATENT))
    changed = task.maps(encode, Masked(jnp.where(mask > 0.0, 5.0, X), mask), (4, 4, LATENT))
    np.testing.assert_array_equal(maps, changed)
    np.testing.assert_array_equal(maps[..., -1], 2.0 * mask[:, ::2, ::2, 0] - 1.0)
    assert maps.shape[-1] == task.channels(LATENT, 1)


def test_rectangles_have_the_sizes_that_are_asked_for():
    """Sides in pixels differ from the share by less than one; with one size and all of the image, all is a hole."""
    masks = np.asarray(rectangles(jax.random.key(0), (500, 16, 32, 1), 1, 0.25, 0.5))[..., 0]
    assert set(np.unique(masks)) == {0.0, 1.0}
    rows, columns = masks.max(axis=2).sum(axis=1), masks.max(axis=1).sum(axis=1)
    assert (rows.min(), rows.max()) == (4, 8)
    assert (columns.min(), columns.max()) == (8, 16)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), rows * columns)
    for axes in ((0, 1), (0, 2)):  # they reach all columns and rows
        assert masks.mean(axis=axes).min() > 0.0
    assert np.all(rectangles(jax.random.key(0), (3, 4, 4, 1), 1, 1.0, 1.0) == 1.0)


def test_small_images_are_taken_as_they_are_and_large_ones_reduced():
    task = Upscaling()
    small = X[:, :4, :4]
    np.testing.assert_allclose(task.maps(lambda x: x, small, (4, 4, LATENT)), small, atol=1e-6)
    reduced = task.maps(lambda x: x, X, (4, 4, LATENT))
    assert reduced.shape == (4, 4, 4, task.channels(LATENT, 1))
    flat = task.maps(lambda x: x, jnp.full_like(X, 0.3), (4, 4, LATENT))
    np.testing.assert_allclose(flat, 0.3, atol=1e-6)


@pytest.mark.parametrize("task", [Inpainting(), Upscaling()])
def test_training_draws_what_is_to_be_completed(task):
    """From the image itself; the same key draws the same."""
    model = latent_model(task=task)
    params = model.init(jax.random.key(1))
    loss = jax.jit(lambda key: model.loss(params, Batch(X), key)[0])
    assert loss(KEY) == loss(KEY) != loss(jax.random.key(5))


def test_impossible_holes_are_refused():
    with pytest.raises(ValueError, match=r"smallest=0\.6, largest=0\.5"):
        Inpainting(smallest=0.6)
    with pytest.raises(ValueError, match="rectangles=0"):
        Inpainting(rectangles=0)
