"""The LSGM objective: one backward pass equals two, and the bound is exact where everything is Gaussian."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from experiments.exact_gaussian import exact_eps
from lsgm_jax.arrays import coordinates, expand, sum_per_sample
from lsgm_jax.objectives import time_densities, weightings
from lsgm_jax.objectives.bound import Encoded, Latent
from lsgm_jax.objectives.control_variate import Draw, gaussian_bound
from lsgm_jax.objectives.elbo import (
    Objective,
    dsm_loss,
    joint_dsm_loss,
    joint_dsm_loss_separate_t,
    sample_draw,
)
from lsgm_jax.objectives.kl import KLWeight
from lsgm_jax.objectives.score_matching import l1
from lsgm_jax.processes import linear
from tests.process_examples import MAIN


@pytest.fixture(params=MAIN)
def process(request):
    return MAIN[request.param]


def two_layer_net(theta, z_t, t):
    hidden = sum(jnp.tanh((i + 1) * z @ theta["in"]) for i, z in enumerate(coordinates(z_t)))
    return jnp.tanh(hidden + t[:, None] * theta["time"]) @ theta["out"]


def parameters():
    keys = jax.random.split(jax.random.key(0), 6)
    theta = {
        "in": jax.random.normal(keys[0], (3, 16)),
        "time": jax.random.normal(keys[1], (16,)),
        "out": jax.random.normal(keys[2], (16, 3)) / 4,
    }
    return theta, jax.random.normal(keys[3], (5, 3)), jax.random.normal(keys[4], (8, 5)), keys[5]


def encoder_alone(phi):
    """An autoencoder of x @ phi that has no other term in the bound: the joint loss is then that of the prior."""

    def autoencode(x):
        z_0, none = x @ phi, jnp.zeros((len(x), 0))
        zero = jnp.zeros_like(z_0)
        latent = Latent(z_0, zero, zero, none, none, jnp.zeros(len(x)))
        return Encoded(latent, jnp.zeros(len(x)), {}, {})

    return autoencode


def weighted_error(process, weight, density, draw):
    """Mean over the batch of weight / density |eps - eps_hat|^2, as a function of both parameters."""

    def loss(phi, theta, x):
        z_t = linear.perturb(process, x @ phi, draw.t, draw.eps)
        error = sum_per_sample((coordinates(draw.eps)[-1] - two_layer_net(theta, z_t, draw.t)) ** 2)
        return (weight(process, draw.t) / density.density(process, draw.t) * error).mean()

    return loss


@pytest.mark.parametrize("weighting", [weightings.unweighted, weightings.reweighted, weightings.likelihood])
def test_one_backward_pass_equals_two(x64, process, weighting):
    """LSGM Algorithm 3 written out with two gradients: the prior's with w_p, the encoder's with kl * w_q."""
    theta, phi, x, key = parameters()
    density, kl = time_densities.Uniform(t_min=0.01), 0.7
    objective = Objective(prior_weighting=weighting, density=density, control_variate=False)
    draw = sample_draw(density, objective.spread, process, key, x @ phi)

    def one_pass(phi, theta):
        eps_net = lambda z_t, t: two_layer_net(theta, z_t, t)
        encoder = encoder_alone(phi)
        return joint_dsm_loss(objective, process, encoder, eps_net, x, key, KLWeight(kl)).loss.mean()

    encoder_loss = weighted_error(process, weightings.likelihood, density, draw)
    prior_loss = weighted_error(process, weighting, density, draw)
    g_phi, g_theta = jax.grad(one_pass, argnums=(0, 1))(phi, theta)
    expected_phi = kl * jax.grad(encoder_loss)(phi, theta, x)
    expected_theta = jax.grad(prior_loss, argnums=1)(phi, theta, x)
    np.testing.assert_allclose(g_phi, expected_phi, rtol=1e-10)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), g_theta, expected_theta)
    if weighting is not weightings.likelihood:  # the two weightings really differ
        assert not np.allclose(g_phi, kl * jax.grad(prior_loss)(phi, theta, x), rtol=0.1)


@pytest.mark.parametrize("control_variate", [False, True])
def test_separate_samples_reach_their_own_parameters(x64, process, control_variate):
    """LSGM Algorithm 2: the prior learns at its times and the encoder at others, each by its own weighting alone."""
    theta, phi, x, key = parameters()
    keys = jax.random.split(key)
    objective = Objective(
        prior_weighting=weightings.unweighted,
        density=time_densities.Uniform(t_min=0.01),
        encoder_density=time_densities.Optimal(t_min=0.01),
        control_variate=control_variate,
    )
    prior_draw, encoder_draw = (
        sample_draw(density, objective.spread, process, k, x @ phi)
        for density, k in zip((objective.density, objective.encoder_density), keys, strict=True)
    )

    def loss(phi, theta):
        net = lambda theta: lambda z_t, t: two_layer_net(theta, z_t, t)
        frozen = net(jax.lax.stop_gradient(theta))
        nets, kl = (net(theta), frozen), KLWeight(0.7)
        joint = joint_dsm_loss_separate_t(
            objective, process, encoder_alone(phi), nets, x, tuple(keys), kl, (1,)
        )
        return joint.loss.mean()

    prior_loss = weighted_error(process, weightings.unweighted, objective.density, prior_draw)
    encoder_loss = weighted_error(process, weightings.likelihood, objective.encoder_density, encoder_draw)

    def known(phi):  # what the control variate adds depends on the encoder alone
        z_0 = x @ phi
        z_t = linear.perturb(process, z_0, *encoder_draw)
        normal = coordinates(encoder_draw.eps)[-1] - linear.gaussian_eps(process, z_t, encoder_draw.t)
        r = objective.encoder_density.density(process, encoder_draw.t)
        removed = expand(weightings.likelihood(process, encoder_draw.t) / r, normal) * normal**2
        return sum_per_sample(gaussian_bound(process, z_0, 0.01) - removed).mean()

    g_phi, g_theta = jax.grad(loss, argnums=(0, 1))(phi, theta)
    expected_phi = jax.grad(encoder_loss)(phi, theta, x)
    if control_variate:
        expected_phi += jax.grad(known)(phi)
    np.testing.assert_allclose(g_phi, 0.7 * expected_phi, rtol=1e-9)
    expected_theta = jax.grad(prior_loss, argnums=1)(phi, theta, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), g_theta, expected_theta)


MEAN, STD, DATA_VARIANCE = np.array([0.8, -0.3]), np.array([0.2, 0.5]), 0.4


def posterior_draws(key, count=512):
    """z_0 ~ q = N(MEAN, STD^2)."""
    return MEAN + STD * jax.random.normal(key, (count, 2))


def exact_cross_entropy(data_variance=DATA_VARIANCE):
    """CE(q || N(0, data_variance)) in closed form."""
    return 0.5 * np.sum((MEAN**2 + STD**2) / data_variance + np.log(2 * np.pi * data_variance))


def estimated_cross_entropy(objective, process, repeats=200):
    """Mean and standard error of the estimate for the exact score."""
    net = exact_eps(process, 0.0, DATA_VARIANCE)

    def one(key):
        k_z, k_t, k_eps = jax.random.split(key, 3)
        z_0 = posterior_draws(k_z)
        t = time_densities.sample_times(objective.density, process, k_t, len(z_0))
        draw = Draw(t, linear.unit_noise(process, k_eps, z_0.shape))
        return dsm_loss(objective, process, net, z_0, draw).cross_entropy.mean()

    values = jax.lax.map(one, jax.random.split(jax.random.key(1), repeats))
    return values.mean(), values.std() / np.sqrt(repeats)


def neglected(process, t_min):
    """What the published constant lacks, exactly: CE(q_1 || prior) - H(z_1 | z_0), and CE at t_min for at 0."""

    def diffused(t, mean, variance):
        signal, noise = map(np.asarray, linear.kernel(process, jnp.asarray(t)))
        return signal * mean, noise @ noise.T + variance * np.outer(signal, signal)

    def cross(mean, cov, other):
        inverse = np.linalg.inv(other)
        return 0.5 * (
            np.trace(inverse @ cov)
            + mean @ inverse @ mean
            + np.linalg.slogdet(other)[1]
            + len(other) * np.log(2 * np.pi)
        )

    total = 0.0
    prior = np.diag(np.asarray(process.prior_variance(), float))
    for mean, std in zip(MEAN, STD, strict=True):
        total += cross(*diffused(1.0, mean, std**2), prior) - float(
            linear.noise_entropy(process, jnp.ones(()))
        )
        at_start = cross(*diffused(t_min, mean, std**2), diffused(t_min, 0.0, DATA_VARIANCE)[1])
        at_zero = 0.5 * ((mean**2 + std**2) / DATA_VARIANCE + np.log(2 * np.pi * DATA_VARIANCE))
        total -= at_start - float(linear.auxiliary_entropy(process)) - at_zero
    return total


@pytest.mark.parametrize("density", [time_densities.Optimal, time_densities.Defensive])
def test_published_cross_entropy_is_exact_for_normal_data(x64, process, density):
    """With the exact score of N(0, v) the paper's estimate is CE(q || N(0, v)) for any q (LSGM Theorem 1; O2).

    For CLD the velocity's entropy at time 0 is taken off: the cross entropy of the position alone.
    """
    t_min = 1e-4
    objective = Objective(
        prior_weighting=weightings.likelihood, density=density(t_min=t_min), control_variate=False
    )
    mean, stderr = estimated_cross_entropy(objective, process)
    assert abs(mean + neglected(process, t_min) - exact_cross_entropy()) < 4 * stderr
    assert stderr < 0.1


@pytest.mark.parametrize("t_min", [1e-3, 0.05])
def test_low_noise_cross_entropy_exceeds_the_exact_one_by_its_gaps(x64, process, t_min):
    """For the exact score of N(0, v) the bound (O7) differs from CE(q || N(0, v)) only at t_min and at t = 1."""
    objective = Objective(
        prior_weighting=weightings.unweighted, density=time_densities.Defensive(t_min=t_min)
    )
    mean, stderr = estimated_cross_entropy(objective, process)
    signal_to_noise = DATA_VARIANCE * float(jnp.exp(linear.log_snr(process, jnp.asarray(t_min))))
    signal, noise = map(np.asarray, linear.kernel(process, jnp.ones(())))
    cov, prior = noise @ noise.T, np.diag(np.asarray(process.prior_variance(), float))
    marginal = cov + DATA_VARIANCE * np.outer(signal, signal)
    gaps = 0.0
    for z2 in MEAN**2 + STD**2:
        gaps += 0.5 * (np.log1p(1 / signal_to_noise) + (1 - z2 / DATA_VARIANCE) / (1 + signal_to_noise))
        end = cov + z2 * np.outer(signal, signal)
        gaps += 0.5 * np.trace((np.linalg.inv(prior) - np.linalg.inv(marginal)) @ end)
        gaps += 0.5 * (np.linalg.slogdet(prior)[1] - np.linalg.slogdet(marginal)[1])
    assert abs(mean - exact_cross_entropy() - gaps) < 4 * stderr


@pytest.mark.parametrize("t_min", [1e-4, 0.01])
def test_normal_bound_is_the_integral_it_replaces(x64, process, t_min):
    """Closed form (O9) against quadrature over t of (O7), with the expectation over eps taken exactly."""
    z = jnp.array([0.7, -1.9])
    t = jnp.exp(jnp.linspace(jnp.log(t_min), 0.0, 200_001))
    signal, noise = linear.kernel(process, t)
    cov = noise @ noise.mT + linear.data_variance(process) * signal[:, :, None] * signal[:, None, :]
    row = noise[:, -1, -1, None] * jnp.linalg.inv(cov)[:, -1]  # eps_hat = row . z_t
    of_noise = (
        -jnp.einsum("ti,tij->tj", row, noise).at[:, -1].add(-1.0)
    )  # eps - eps_hat is linear in eps and z
    of_signal = -jnp.einsum("ti,ti->t", row, signal)
    error = 2 * (of_noise**2).sum(-1) + of_signal**2 * (z**2).sum()
    integral = jnp.trapezoid(weightings.likelihood(process, t) * error, t)
    reconstruction = 1 + jnp.log(2 * jnp.pi) - linear.log_snr(process, t[0])
    prior = jnp.diag(jnp.asarray(process.prior_variance()))
    last = noise[-1] @ noise[-1].T
    kl = sum(
        scipy_kl(np.asarray(signal[-1]) * float(value), np.asarray(last), np.asarray(prior)) for value in z
    )
    exact = reconstruction + integral + kl
    np.testing.assert_allclose(gaussian_bound(process, z[None], t_min).sum(), exact, rtol=1e-6)


def scipy_kl(mean, cov, prior):
    """KL(N(mean, cov) || N(0, prior)) from scipy's entropy and the cross entropy written out."""
    cross = 0.5 * (np.trace(np.linalg.inv(prior) @ cov) + mean @ np.linalg.inv(prior) @ mean)
    cross += 0.5 * (np.linalg.slogdet(prior)[1] + len(mean) * np.log(2 * np.pi))
    return cross - scipy.stats.multivariate_normal(np.zeros(len(mean)), cov).entropy()


def test_control_variate_removes_most_of_the_noise(x64, process):
    """For a latent that is nearly standard Gaussian, as an encoder's is, the spread falls to an eighth or less."""
    keys = jax.random.split(jax.random.key(2), 3)
    z_0 = 0.9 * jax.random.normal(keys[0], (20_000, 32))
    density = time_densities.Defensive(t_min=1e-3)
    published = Objective(prior_weighting=weightings.likelihood, density=density, control_variate=False)
    controlled = dataclasses.replace(published, control_variate=True)
    t = time_densities.sample_times(density, process, keys[1], len(z_0))
    draw = Draw(t, linear.unit_noise(process, keys[2], z_0.shape))
    plain = dsm_loss(published, process, exact_eps(process, 0.0, 0.81), z_0, draw).cross_entropy
    quiet = dsm_loss(controlled, process, exact_eps(process, 0.0, 0.81), z_0, draw).cross_entropy
    assert quiet.std() < 0.125 * plain.std()


def test_control_variate_changes_no_expected_gradient(x64, process):
    """Mean gradients with and without it agree; the encoder's is far less noisy with it."""
    published = Objective(
        prior_weighting=weightings.unweighted,
        density=time_densities.Defensive(t_min=1e-3),
        control_variate=False,
    )
    controlled = dataclasses.replace(published, control_variate=True)
    mean, logit = jnp.array([0.6, -0.4, 1.0]), jnp.zeros(3)

    def loss(objective, mean, logit, key):
        k_z, k_draw = jax.random.split(key)
        z_0 = mean + 0.5 * jax.random.normal(k_z, (64, 3))
        net = lambda z_t, t: exact_eps(process, 0.0, 0.5)(z_t, t) * 2 * jax.nn.sigmoid(logit)
        joint = joint_dsm_loss(objective, process, encoder_alone(jnp.eye(3)), net, z_0, k_draw, KLWeight(0.7))
        return joint.loss.mean()

    def gradients(objective):
        one = jax.jit(jax.grad(lambda mean, logit, key: loss(objective, mean, logit, key), argnums=(0, 1)))
        return jax.lax.map(lambda key: one(mean, logit, key), jax.random.split(jax.random.key(3), 2000))

    (plain_mean, plain_logit), (quiet_mean, quiet_logit) = gradients(published), gradients(controlled)
    np.testing.assert_allclose(plain_logit, quiet_logit, rtol=1e-9)
    difference = plain_mean - quiet_mean
    # The published estimate stops at t = 1 without the KL divergence to the prior (D14), whose gradient is known.
    left = jnp.exp(linear.log_snr(process, jnp.ones(())))
    tolerance = 4.5 * difference.std(0) / np.sqrt(2000) + 2e-3 + 2.0 * left * abs(mean)
    assert (abs(difference.mean(0)) < tolerance).all()
    assert (quiet_mean.std(0) < 0.8 * plain_mean.std(0)).all()


def test_value_of_the_loss_is_the_weighted_error(x64, process):
    """The gradient's scaling leaves no trace in the value."""
    z_0, key = jnp.ones((4, 3)), jax.random.key(5)
    objective = Objective(
        prior_weighting=weightings.reweighted,
        density=time_densities.Uniform(t_min=0.1),
        control_variate=False,
    )
    silent = lambda z_t, t: jnp.zeros_like(z_0)
    joint = joint_dsm_loss(objective, process, encoder_alone(jnp.eye(3)), silent, z_0, key, KLWeight(0.3))
    t, eps = sample_draw(objective.density, objective.spread, process, key, z_0)
    exact = 0.5 * process.diffusion(t) ** 2 * 0.9 * jnp.sum(coordinates(eps)[-1] ** 2, axis=-1)
    np.testing.assert_allclose(joint.loss, exact, rtol=1e-12)
    np.testing.assert_allclose(joint.prior_loss, exact, rtol=1e-12)


def test_the_joint_loss_has_every_term_of_the_bound(x64, process):
    """Reconstruction, and beta times entropy and other latents, beside the prior's error: eq. 9, term by term."""
    x, key, beta = jnp.ones((4, 3)), jax.random.key(6), 0.3
    rows = jax.random.normal(jax.random.key(7), (6, 4))
    entropy, other_entropy, other_cross_entropy = rows[0][:, None] * x, rows[1:3].T, rows[3:5].T

    def autoencode(x):
        latent = Latent(x, entropy, x, other_entropy, other_cross_entropy, rows[0])
        return Encoded(latent, rows[5], {}, {})

    objective = Objective(prior_weighting=weightings.likelihood, density=time_densities.Uniform(t_min=0.1))
    net = lambda z_t, t: 0.5 * coordinates(z_t)[-1]
    joint = joint_dsm_loss(objective, process, autoencode, net, x, key, KLWeight(beta))
    alone = joint_dsm_loss(objective, process, encoder_alone(jnp.eye(3)), net, x, key, KLWeight(beta))
    others = other_cross_entropy.sum(1) - entropy.sum(1) - other_entropy.sum(1)
    np.testing.assert_allclose(joint.loss, alone.loss + rows[5] + beta * others, rtol=1e-12)
    np.testing.assert_allclose(joint.cross_entropy, alone.cross_entropy, rtol=1e-12)


@pytest.mark.parametrize("published", [True, False])
def test_nelbo_of_a_linear_vae_is_its_log_likelihood(x64, process, published):
    """z ~ N(0, I), x = 2 z + 0.5 noise: with the exact posterior as encoder NELBO, cross entropy and KL are known.

    LSGM for the processes with one coordinate, LSGM-CLD for CLD; `published` estimates as the papers do, and
    what they neglect at t_min and 1 is allowed for in closed form by the other estimate's gaps.
    """
    weight, noise, t_min = 2.0, 0.5, 1e-4
    precision = linear.data_variance(process) ** -1 + weight**2 / noise**2
    objective = Objective(
        prior_weighting=weightings.likelihood,
        density=time_densities.Optimal(t_min=t_min),
        control_variate=not published,
    )
    net = exact_eps(process, 0.0, linear.data_variance(process))

    def one(key):
        k_x, k_z, k_t, k_eps = jax.random.split(key, 4)
        scale = jnp.sqrt(weight**2 * linear.data_variance(process) + noise**2)
        x = scale * jax.random.normal(k_x, (256, 2))
        mean = weight / noise**2 / precision * x
        z_0 = mean + jax.random.normal(k_z, x.shape) / jnp.sqrt(precision)
        draw = Draw(
            time_densities.sample_times(objective.density, process, k_t, 256),
            linear.unit_noise(process, k_eps, x.shape),
        )
        reconstruction = -jax.scipy.stats.norm.logpdf(x, weight * z_0, noise).sum(-1)
        entropy = x.shape[-1] * 0.5 * (1 + jnp.log(2 * jnp.pi / precision))
        cross_entropy = dsm_loss(objective, process, net, z_0, draw).cross_entropy
        exact_kl = exact_normal_kl(mean, 1 / precision, linear.data_variance(process))
        log_px = jax.scipy.stats.norm.logpdf(x, 0.0, scale).sum(-1)
        return (
            (reconstruction - entropy + cross_entropy + log_px).mean(),
            (cross_entropy - entropy - exact_kl).mean(),
        )

    gaps = jax.lax.map(one, jax.random.split(jax.random.key(4), 200))
    # Averaged over the encoder's latents, N(0, V), what separates the estimate from the truth is known.
    v = linear.data_variance(process)
    missing = 2 * mean_gap(process, t_min, v, published)
    for gap in gaps:
        assert abs(gap.mean() - missing) < 4.5 * gap.std() / np.sqrt(len(gap))


def exact_normal_kl(mean, variance, prior_variance):
    ratio = variance / prior_variance
    return 0.5 * (mean**2 / prior_variance + ratio - 1 - jnp.log(ratio)).sum(-1)


def mean_gap(process, t_min, v, published):
    """Estimate less CE(q || N(0, V)) per dimension, averaged over z_0 ~ N(0, V), by matrices."""

    def joint(t):
        signal, noise = map(np.asarray, linear.kernel(process, jnp.asarray(t)))
        cov = noise @ noise.T
        return signal, cov, cov + v * np.outer(signal, signal)

    signal, cov, _ = joint(t_min)
    snr = signal @ np.linalg.inv(cov) @ signal
    _, end_cov, end_marginal = joint(1.0)
    prior = np.diag(np.asarray(process.prior_variance(), float))
    end_kl = 0.5 * (
        np.trace(np.linalg.inv(prior) @ end_marginal)
        - len(prior)
        + np.linalg.slogdet(prior)[1]
        - np.linalg.slogdet(end_marginal)[1]
    )
    start_gap = 0.5 * np.log1p(1 / (v * snr))  # mean KL from the posterior to N(z / a, s^2 / a^2)
    if not published:
        return start_gap + end_kl
    # The published constant: entropy at t_min instead of -log snr, and nothing at t = 1.
    entropy = float(linear.noise_entropy(process, jnp.asarray(t_min)) - linear.auxiliary_entropy(process))
    constant = entropy - 0.5 * (1 + np.log(2 * np.pi) - np.log(snr))
    neglected_end = 0.5 * (
        np.trace(np.linalg.inv(prior) @ end_marginal)
        - len(prior)
        + np.linalg.slogdet(prior)[1]
        - np.linalg.slogdet(end_cov)[1]
    )
    return start_gap + end_kl + constant - neglected_end


def test_an_encoder_takes_no_absolute_errors():
    """Neither one pass for both nor two: the bound, which the encoder minimises, is of squares."""
    process, x, key = MAIN["vp"], jnp.ones((2, 3)), jax.random.key(0)
    objective = Objective(prior_weighting=weightings.unweighted, density=time_densities.Uniform(), norm=l1)
    encoder, net = encoder_alone(jnp.eye(3)), lambda z_t, t: z_t
    for loss in (
        lambda: joint_dsm_loss(objective, process, encoder, net, x, key),
        lambda: joint_dsm_loss_separate_t(
            objective, process, encoder, (net, net), x, (key, key), KLWeight(), (1,)
        ),
    ):
        with pytest.raises(ValueError, match="norm=l1: an encoder needs its prior trained by l2"):
            loss()
