"""Parity with numbers that the original code computed: `pytest tests/test_oracles.py -k cld_loss`, say.

A fixture is a pair NAME.json (hyper-parameters) and NAME.npz (inputs, parameters, outputs). Everything is built from
the json, so LSGM_ORACLES=DIR runs the same tests on another folder of fixtures with other numbers. Where the
original has a quirk, the test says which and computes what the quirk makes of our value.
"""

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsgm_jax.arrays import Phase, expand
from lsgm_jax.diffusions import linear, matrices
from lsgm_jax.diffusions.cld import CLD, velocity_eps
from lsgm_jax.diffusions.ve import VE
from lsgm_jax.diffusions.vp import VP, GeometricVP, SubVP
from lsgm_jax.objectives import kl, times, weights
from lsgm_jax.objectives.matching import known_start, phase_score_matching, score_matching

FOLDER = pathlib.Path(os.environ.get("LSGM_ORACLES", pathlib.Path(__file__).parent / "oracles"))


@dataclasses.dataclass(frozen=True)
class Fixture:
    """Hyper-parameters and arrays; `check` compares one output and remembers what it was given.

    A fixture's inputs have more digits than float32. In float32, `slack` says by how much rounding the inputs alone
    moves each output, which no formula can help.
    """

    spec: dict
    arrays: dict
    slack: dict | None = None
    checked: dict = dataclasses.field(default_factory=dict)

    def input(self, name):
        value = np.asarray(self.arrays[name], np.float32 if self.slack is not None else np.float64)
        return jnp.asarray(value, jnp.zeros(()).dtype)

    def check(self, name, value, *, rtol=1e-10, atol=0.0, single_atol=None):
        """Compares `out/name`: in float32 to 1e-5 of the value, beside what the inputs' rounding does to it."""
        self.checked[name] = value = np.asarray(value, np.float64)
        if self.slack == {}:  # inputs are being rounded to see what that does
            return
        expected = self.arrays[f"out/{name}"]
        if self.slack is not None:
            rtol, atol = 1e-5, atol if single_atol is None else single_atol
            value = np.where(np.abs(value - expected) <= 1.1 * self.slack[name], expected, value)
        np.testing.assert_allclose(value, expected, rtol=rtol, atol=atol, err_msg=name)

    def outputs(self):
        return {name.removeprefix("out/") for name in self.arrays if name.startswith("out/")}


def load(name):
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return Fixture(json.loads((FOLDER / f"{name}.json").read_text()), dict(arrays))


def with_slack(fixture, check):
    """The fixture for float32, with what rounding its inputs does to our float64 outputs."""
    rounded = dataclasses.replace(fixture, slack={}, checked={})
    with jax.enable_x64(True):
        check(rounded)
    slack = {name: np.abs(value - fixture.arrays[f"out/{name}"]) for name, value in rounded.checked.items()}
    return dataclasses.replace(fixture, slack=slack, checked={})


# LSGM's processes, weightings and time densities

MODES = {
    "ll": weights.likelihood,
    "drop_all": weights.unweighted,
    "drop_sigma2t": weights.reweighted,
    "rescale": weights.rescaled,
}


def lsgm_process(h):
    betas = {"beta_min": h["beta_start"], "beta_max": h["beta_end"], "sigma2_0": h["sigma2_0"]}
    curve = {"sigma2_min": h["sigma2_min"], "sigma2_max": h["sigma2_max"]}
    if h["sigma2_0"] != h["sigma2_min"]:
        curve["sigma2_0"] = h["sigma2_0"]
    makers = {
        "vpsde": lambda: VP(**betas),
        "sub_vpsde": lambda: SubVP(**betas),
        "vesde": lambda: VE(**curve),
        "geometric_sde": lambda: GeometricVP(**curve),
    }
    return makers[h["sde_type"]]()


def check_sde(fixture):
    h = fixture.spec["hyper_parameters"]
    process, t = lsgm_process(h), fixture.input("in/t")
    # The original's 1 - exp(-B) loses digits at small times, to 1e-10 of the value at t = 1e-6.
    lossy = {"rtol": 1e-10, "atol": 3e-16}
    signal, noise = (value.reshape(len(t)) for value in linear.kernel(process, t))
    fixture.check("f", process.drift(t)[:, 0, 0], rtol=1e-10)
    fixture.check("g2", process.diffusion(t) ** 2, **lossy)
    fixture.check("var", noise**2, **lossy)
    fixture.check("mean_coeff", signal, rtol=1e-10)
    mixing = linear.normal_eps(process, jnp.ones((len(t), 1)), t)[:, 0]
    fixture.check("mixing_coeff", mixing, rtol=1e-10, atol=1e-13)
    fixture.check(
        "cross_entropy_const", linear.noise_entropy(process, fixture.input("in/ode_eps")), rtol=1e-10
    )
    check_inverses(fixture, process, t)
    for mode in h["iw_modes"]:
        check_mode(fixture, process, mode)


def check_inverses(fixture, process, t):
    """The original's inverses return the t that went in, up to its own rounding; ours are asked for that t."""
    h = fixture.spec["hyper_parameters"]

    def log_variance(process):
        if isinstance(process, VE):
            return 2 * jnp.log(linear.sigma(process, t))
        # Of a variance that nears one, the logarithm is only as good as 1 - sigma^2, which the snr knows.
        return -jax.nn.softplus(jnp.log(linear.data_variance(process)) + linear.log_snr(process, t))

    inverted = {"inv_var_of_var": process}
    if h["sde_type"] == "sub_vpsde":
        vp = VP(beta_min=h["beta_start"], beta_max=h["beta_end"])
        fixture.check("beta", process.beta(t), rtol=1e-10)
        fixture.check("var_vpsde", linear.sigma(vp, t) ** 2, rtol=1e-10, atol=3e-16)
        inverted = {"inv_var_vpsde_of_var_vpsde": vp}
    if h["sde_type"] == "vesde":
        marginal = linear.data_variance(process) + linear.sigma(process, t) ** 2
        fixture.check("var_N", marginal, rtol=1e-10)
        inverted["inv_var_N_of_var_N"] = process
    for name, inverse in inverted.items():
        found = inverse.time_of_log_variance(log_variance(inverse))
        fixture.check(name, found, rtol=1e-9, atol=1e-10, single_atol=2e-6)


def check_mode(fixture, process, mode):
    h, rho = fixture.spec["hyper_parameters"], fixture.input("in/rho")
    weighting, t_min = MODES[mode.rsplit("_", 1)[0]], h["time_eps"]
    # Quirk: "rescale_iw" samples uniformly; for the VPSDE that is optimal.
    uniform = mode.endswith("_uniform") or mode == "rescale_iw"
    density = times.Uniform(t_min=t_min) if uniform else times.Optimal(weighting=weighting, t_min=t_min)
    # Quirk: the sub-VPSDE takes the importance densities of the VPSDE with the same betas.
    borrowed = VP(beta_min=h["beta_start"], beta_max=h["beta_end"]) if isinstance(process, SubVP) else process

    drawn = density.quantile(borrowed, rho)
    fixture.check(f"iw/{mode}/t", drawn, rtol=1e-9, atol=1e-9, single_atol=1e-5)

    t = jnp.maximum(fixture.input(f"out/iw/{mode}/t"), 0.0)  # the original may return -1e-17
    signal, noise = (value.reshape(len(t)) for value in linear.kernel(process, t))
    fixture.check(f"iw/{mode}/var_t", noise**2, rtol=1e-9, atol=1e-9)
    fixture.check(f"iw/{mode}/mean_coeff", signal, rtol=1e-9, atol=1e-9)
    fixture.check(f"iw/{mode}/g2", process.diffusion(t) ** 2, rtol=1e-9, atol=1e-9)
    ratio = quirk(fixture, process, mode, noise**2) / density.density(borrowed, t)
    # In float32 the original's t itself is too coarse where a density is steep; see test_times.py for ours.
    tolerance = {"rtol": 1e-7}
    # Quirk: the VESDE's 1 - sigma^2 changes sign, so its "rescale" weight has a pole.
    fixture.check(
        f"iw/{mode}/weight_p", weighting(process, t) * ratio * rescaled_quirk(process, mode, t), **tolerance
    )
    fixture.check(f"iw/{mode}/weight_q", weights.likelihood(process, t) * ratio, **tolerance)


def quirk(fixture, process, mode, variance):
    """Factor by which both weights of the original differ from lambda / r."""
    h = fixture.spec["hyper_parameters"]
    if mode.endswith("_uniform") or mode == "rescale_iw":
        return 1.0 / (1.0 - h["time_eps"])  # it estimates the average over time, not the integral
    if mode == "drop_all_iw" and isinstance(process, (VP, SubVP)):
        slope = h["beta_end"] - h["beta_start"]
        return np.exp(
            0.5 * (1.0 - h["beta_start"]) * h["beta_start"] / slope
        )  # its normaliser lacks a beta_start
    return 1.0


def rescaled_quirk(process, mode, t):
    """The original rescales by 1 - sigma^2, which is the error of Normal data only if variance is preserved."""
    if mode != "rescale_iw" or isinstance(process, (VP, GeometricVP)):
        return 1.0
    with jax.enable_x64(True):
        t = jnp.asarray(np.asarray(t), jnp.float64)
        return np.asarray(linear.normal_error(process, t) / (1.0 - linear.sigma(process, t) ** 2))


# LSGM's KL schedule and balance


def check_klsched(fixture):
    h = fixture.spec["hyper_parameters"]
    for i, schedule in enumerate(h["schedules"]):
        coefficient = functools.partial(
            kl.annealed,
            start=schedule["min_kl_coeff"],
            end=schedule["max_kl_coeff"],
            constant=int(schedule["constant_step"]),
            ramp=int(schedule["total_step"]),
        )
        values = jax.vmap(coefficient)(fixture.input("in/steps"))
        fixture.check(f"schedule{i}", values, rtol=1e-12)
    for i, structure in enumerate(h["balancer"]):
        groups = structure["groups_per_scale"]
        scales = np.repeat(np.arange(len(groups)), groups)
        sizes = kl.relative_sizes(tuple(groups))
        fixture.check(f"balancer{i}/alpha_square", sizes, rtol=1e-12)
        # The rules that no published run uses.
        for rule, base in (("equal", 1.0), ("linear", 2.0), ("sqrt", np.sqrt(2.0))):
            fixture.check(f"balancer{i}/alpha_{rule}", base**scales, rtol=1e-12)
        divergence = fixture.input(f"in/balancer{i}/kl_all")
        for name in {
            name.split("/")[1] for name in fixture.outputs() if name.startswith(f"balancer{i}/coeff")
        }:
            coefficient, balanced = float(name.split("_")[1]), name.endswith("True")
            balancing = balanced and coefficient < 1.0
            coefficients = kl.balance(divergence, sizes) if balancing else jnp.ones(len(sizes))
            fixture.check(f"balancer{i}/{name}/group_coeffs", coefficients, rtol=1e-10)
            per_image = coefficient * divergence @ coefficients
            fixture.check(f"balancer{i}/{name}/kl_per_image", per_image, rtol=1e-10)
            fixture.check(f"balancer{i}/{name}/group_means", divergence.mean(0), rtol=1e-10)


# CLD's kernel and losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedCLD(CLD):
    """Quirk: the original adds `numerical_eps` to both variances of every kernel."""

    numerical_eps: float = 0.0

    def transition(self, s, t):
        mean, noise = super().transition(s, t)
        for unit in jnp.eye(2):
            noise = matrices.add_noise(noise, jnp.sqrt(self.numerical_eps) * unit)
        return linear.Transition(mean, noise)


def cld_process(h, objective="hsm"):
    process = PublishedCLD(
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
    check("loss_multiplier", weights.reweighted(process, t), rtol=1e-12)
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
    "likelihood": weights.likelihood,
    "reweightedv1": weights.reweighted,
    "reweightedv2": weights.unweighted,
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


def check_loss_case(fixture, h, case, objective, mixed):
    hybrid, kernel = cld_process(h), cld_process(h, objective)
    x, unit_v = (channels_last(fixture.input(f"in/{case}/{name}")) for name in ("x", "noise_v0"))
    eps = Phase(*jnp.split(channels_last(fixture.input(f"in/{case}/noise")), 2, axis=-1))
    t = fixture.input(f"in/{case}/uniform_t") * (1 - 1e-5) + 1e-5
    z_0 = x if objective == "hsm" else Phase(x, jnp.sqrt(hybrid.initial_variance()[1]) * unit_v)
    w, b, c = (fixture.input(f"param/{name}") for name in "Wbc")
    loose = {"rtol": 1e-6, "atol": 1e-9, "single_atol": 2e-5}
    fixture.check(f"{case}/t", t, rtol=1e-12)

    def eps_net(w):
        def predict(z_t, t):
            stacked = jnp.concatenate(z_t, axis=-1)
            output = stacked @ w.T + expand(t, stacked) * b + c
            if not mixed:
                return output
            # Quirk: the velocity's variance in the mixed score is the hybrid kernel's, also under plain matching.
            ratio = linear.sigma(kernel, t) / linear.sigma(hybrid, t)
            return output + expand(ratio, z_t.v) * velocity_eps(hybrid, z_t, t)

        return predict

    if objective == "hsm":
        z_t = linear.perturb(kernel, z_0, t, eps)
    else:
        z_t = linear.move(kernel, z_0, jnp.zeros_like(t), t, eps)
    folder = f"{case}/{objective}"
    fixture.check(f"{folder}/perturbed", channels_first(jnp.concatenate(z_t, axis=-1)), **loose)
    folder += "/mixed_score" if mixed else "/plain_score"
    score = linear.score_of_eps(kernel, eps_net(w)(z_t, t), t)
    fixture.check(f"{folder}/score", channels_first(score), **loose)

    match = score_matching if objective == "hsm" else phase_score_matching
    for name, weighting in CLD_WEIGHTINGS.items():
        loss = lambda w, weighting=weighting: match(weighting, hybrid, eps_net(w), z_0, t, eps)
        fixture.check(f"{folder}/{name}/loss_per_sample", loss(w), **loose)
        gradient = jax.grad(lambda w, loss=loss: loss(w).mean())(w)
        fixture.check(f"{folder}/{name}/grad_W_of_mean_loss", gradient, **loose)


CHECKS = {"sde": check_sde, "klsched": check_klsched, "kernel": check_kernel, "loss": check_loss}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.json")))
def test_parity(name, precision):
    fixture = load(name)
    kind = fixture.spec["kind"]
    assert kind in CHECKS, f"{name}: fixtures of kind {kind!r} are not handled yet"
    if precision == "float32":
        fixture = with_slack(fixture, CHECKS[kind])
    CHECKS[kind](fixture)
    assert set(fixture.checked) == fixture.outputs()
