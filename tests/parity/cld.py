"""CLD's kernel and losses."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lsgm_jax.arrays import Phase, expand
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives import weightings
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.score_matching import known_start, phase_score_matching, score_matching
from lsgm_jax.objectives.time_densities import Uniform
from lsgm_jax.processes import linear, matrices
from lsgm_jax.processes.cld import CLD, velocity_eps


def cld_process(h, objective="hsm"):
    process = CLD(
        beta_min=h["beta0"],
        beta_max=h["beta0"] + h["beta1"],
        mass=1.0 / h["m_inv"],
        v0_var_scale=h["gamma"],
        numerical_eps=h["numerical_eps"],
    )
    return process if objective == "hsm" else known_start(process)


def check_kernel(fixture):
    for combination in fixture.spec["hyper_parameters"]["combos"]:
        process = cld_process(combination, combination["cld_objective"])
        check_combination(fixture, process, combination["block"])


def check_combination(fixture, process, block):
    t = fixture.input("in/t")
    check = lambda name, value, **tolerance: fixture.check(f"{block}/{name}", value, **tolerance)
    exact = {"rtol": 1e-10, "atol": 1e-15}
    zero = jnp.zeros_like(t)
    mean, noise = process.transition(zero, t)[0], linear.kernel(process, t).noise
    drift = process.drift(t)
    coordinates = ("x", "v")
    for i, a in enumerate(coordinates):
        for j, b in enumerate(coordinates):
            check(f"mean_{a}_from_{b}", mean[:, i, j], rtol=1e-10, atol=1e-15, single_atol=1e-7)
            check(f"drift_{a}_from_{b}", drift[:, i, j], rtol=1e-12)
    # The original's expanded polynomials lose 1e-16, which is 1e-7 of S_xx at t = 1e-5.
    check_covariance(check, "", noise @ noise.mT)
    start = known_start(process)
    general = linear.kernel(start, t).noise
    for index, variance in enumerate(fixture.spec["hyper_parameters"]["general_var0"]):
        general = matrices.add_noise(general, mean[:, :, index] * jnp.sqrt(variance))
    check_covariance(check, "general_var0/", general @ general.mT)
    rows = {"chol_11": noise[:, 0, 0], "chol_21": noise[:, 1, 0], "chol_22": noise[:, 1, 1]}
    for name, value in rows.items():
        check(name, value, rtol=1e-7, atol=1e-13, single_atol=1e-7)
    check("noise_multiplier", -1.0 / linear.sigma(process, t), rtol=1e-7)
    check("beta", process.beta(t), rtol=1e-12)
    check("beta_int", process.int_beta(zero, t), rtol=1e-12)
    check("loss_multiplier", weightings.reweighted(process, t), rtol=1e-12)
    check("diffusion_x", zero, **exact)
    check("diffusion_v", process.diffusion(t), rtol=1e-12)
    check("Gamma", process.damping(), rtol=1e-12)
    check("inverse_of_Gamma", 1.0 / process.damping(), rtol=1e-12)
    check_prior(fixture, process, check)
    check_reverse(fixture, process, check)


def check_covariance(check, prefix, cov):
    for name, value in (("xx", cov[:, 0, 0]), ("xv", cov[:, 0, 1]), ("vv", cov[:, 1, 1])):
        check(f"{prefix}var_{name}", value, rtol=1e-10, atol=1e-15, single_atol=1e-7)


def check_prior(fixture, process, check):
    x, v = jnp.split(fixture.input("in/prior_u"), 2, axis=1)
    zero = jnp.zeros_like(x)
    at_origin = linear.prior_log_prob(process, Phase(zero, zero))
    constants = [-0.5 * x.shape[1] * jnp.log(2 * jnp.pi * variance) for variance in process.prior_variance()]
    np.testing.assert_allclose(at_origin, sum(constants), rtol=1e-6)
    check("prior_logp_x", linear.prior_log_prob(process, Phase(x, zero)) - constants[1], rtol=1e-10)
    check("prior_logp_v", linear.prior_log_prob(process, Phase(zero, v)) - constants[0], rtol=1e-10)


def check_reverse(fixture, process, check):
    """The original's reversed time runs from 0 to 1, so its drifts are those at 1 - t with the other sign."""
    x, v = jnp.split(fixture.input("in/reverse_u"), 2, axis=1)
    t, score = 1.0 - fixture.input("in/reverse_t"), fixture.input("in/reverse_score")
    eps_hat = -linear.sigma(process, t)[:, None] * score
    for name, drift in (("reverse_sde", linear.reverse_drift), ("probability_flow", linear.probability_flow)):
        back = drift(process, Phase(x, v), eps_hat, t)
        check(f"{name}/drift", -jnp.concatenate(back, axis=1), rtol=1e-10, single_atol=1e-5)
    g = jnp.broadcast_to(process.diffusion(t)[:, None], v.shape)
    check("reverse_sde/diffusion", jnp.concatenate([0 * g, g], axis=1), rtol=1e-12)
    check("probability_flow/diffusion", jnp.zeros((len(t), 2 * v.shape[1])), rtol=1e-12)


CLD_WEIGHTINGS = {
    "likelihood": weightings.likelihood,
    "reweightedv1": weightings.reweighted,
    "reweightedv2": weightings.unweighted,
}


def channels_last(value):
    return jnp.moveaxis(value, 1, -1)


def channels_first(value):
    return np.moveaxis(np.asarray(value), -1, 1)


def check_loss(fixture):
    h = fixture.spec["hyper_parameters"]["sde"]
    for case in ("vector", "image"):
        for objective in ("hsm", "dsm"):
            for mixed in (False, True):
                check_loss_case(fixture, h, case, objective, mixed)


class Affine(nn.Module):
    """The fixture's network: linear in the state and the time."""

    @nn.compact
    def __call__(self, z_t, t, *, deterministic):
        w, b, c = (self.get_variable("params", name) for name in "Wbc")
        return z_t @ w.T + expand(t, z_t) * b + c


def check_loss_case(fixture, h, case, objective, mixed):
    process = cld_process(h)
    start = known_start(process) if objective == "dsm" else None
    x, unit_v = (channels_last(fixture.input(f"in/{case}/{name}")) for name in ("x", "noise_v0"))
    eps = Phase(*jnp.split(channels_last(fixture.input(f"in/{case}/noise")), 2, axis=-1))
    t = fixture.input(f"in/{case}/uniform_t") * (1 - 1e-5) + 1e-5
    phase = Phase(x, jnp.sqrt(process.initial_variance()[1]) * unit_v)
    affine = {name: fixture.input(f"param/{name}") for name in "Wbc"}
    loose = {"rtol": 1e-6, "atol": 1e-9, "single_atol": 2e-5}
    fixture.check(f"{case}/t", t, rtol=1e-12)
    model = ScoreModel(
        shape=x.shape[1:],
        process=process,
        net=Network(Affine()),
        objective=Objective(prior_weighting=weightings.unweighted, density=Uniform(t_min=1e-5)),
        # Quirk: the velocity's variance in the mixed score is the hybrid kernel's, also under plain matching.
        fixed_part=velocity_eps if mixed else None,
        start=None if start is None else known_start,
    )
    eps_net = lambda w: model.eps_net({"score_net": {**affine, "W": w}})

    z_t = linear.perturb_state(start, phase, t, eps) if start else linear.perturb(process, x, t, eps)
    folder = f"{case}/{objective}"
    fixture.check(f"{folder}/perturbed", channels_first(jnp.concatenate(z_t, axis=-1)), **loose)
    folder += "/mixed_score" if mixed else "/plain_score"
    score = linear.score_of_eps(process, eps_net(affine["W"])(z_t, t), t)
    fixture.check(f"{folder}/score", channels_first(score), **loose)

    for name, weighting in CLD_WEIGHTINGS.items():

        def loss(w, weighting=weighting):
            if start is None:
                return score_matching(weighting, process, eps_net(w), x, t, eps)
            return phase_score_matching(weighting, process, start, eps_net(w), phase, t, eps)

        losses, pull_back = jax.vjp(loss, affine["W"])
        fixture.check(f"{folder}/{name}/loss_per_sample", losses, **loose)
        (gradient,) = pull_back(jnp.full_like(losses, 1 / len(losses)))
        fixture.check(f"{folder}/{name}/grad_W_of_mean_loss", gradient, **loose)


CHECKS = {"kernel": check_kernel, "loss": check_loss}
