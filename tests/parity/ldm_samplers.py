"""LDM's samplers: whole trajectories under the exact noise prediction of one Gaussian, or of a mixture of two."""

import dataclasses
import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.processes import linear
from lsgm_jax.processes.discrete import discrete_vp
from lsgm_jax.solvers.interval import between
from lsgm_jax.solvers.masked import PART, masked
from lsgm_jax.solvers.registry import METHODS
from lsgm_jax.solvers.terms import Problem, Reverse, by_rows, times_like

# A trajectory's largest error as a share of its largest entry. In float32 the states' is up to 4e-6 (guided PLMS; 8e-7
# without guidance) and in float64 still 1.5e-6, because the original ran in float32.
SHARE = 1e-5


def check_share(fixture, name, value, share=SHARE):
    fixture.check_scaled(name, value, rtol=share, single_rtol=share)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The original's draws, [steps, ...], by part."""

    draws: dict

    def draw(self, step, part, like):
        return self.draws[part][step].astype(like.dtype)


FIELDS = {
    "beta_schedule": "schedule",
    "timesteps": "steps",
    "linear_start": "first",
    "linear_end": "last",
    "cosine_s": "offset",
}


def discrete_process(h):
    """The process that a schedule's hyper-parameters stand for."""
    return discrete_vp(**{field: h[name] for name, field in FIELDS.items() if name in h})


def mixture_eps(fixture, process, model, components=None):
    """Exact noise prediction, of each sample's own component if `components` [batch] are given."""
    mu, std, weights = (fixture.input(f"in/{model}/{name}") for name in ("mu", "std", "weights"))
    products = np.cumprod(1.0 - np.asarray(process.betas)).astype(np.float32)

    def predict(z_t, t):
        timestep = jnp.round(t * len(process.betas)).astype(int) - 1
        left = jnp.asarray(products, z_t.dtype)[timestep][:, None, None, None, None]  # batch, component, ...
        variance = left * std**2 + 1.0 - left
        centred = z_t[:, None] - jnp.sqrt(left) * mu
        if components is None:
            log_odds = -0.5 * (centred**2 / variance + jnp.log(variance)).sum(axis=(2, 3, 4)) + jnp.log(
                weights
            )
        else:
            log_odds = jnp.log(jax.nn.one_hot(components, len(mu)))
        shares = jax.nn.softmax(log_odds, axis=1)[:, :, None, None, None]
        return (shares * jnp.sqrt(1.0 - left) * centred / variance).sum(axis=1)

    return predict


def guided_eps(fixture, process, scale):
    free = mixture_eps(fixture, process, "mix")
    own = mixture_eps(fixture, process, "mix", jnp.asarray(fixture.arrays["in/class_ids"]) - 1)
    return lambda z_t, t: free(z_t, t) + scale * (own(z_t, t) - free(z_t, t))


def timesteps_of(steps, total, spacing="uniform"):
    """Those that the original visits, decreasing: "uniform" and "quad" of its DDIM schedules."""
    if spacing == "uniform":
        chosen = np.arange(0, total, total // steps)
    else:
        chosen = (np.linspace(0.0, np.sqrt(0.8 * total), steps) ** 2).astype(int)
    return (chosen + 1)[::-1]


def trajectory(method, problem, times, start):
    """All states, from the same call of diffrax that the sampler makes, which keeps the last one."""
    nodes = (1.0 - jnp.asarray(times)).astype(start.dtype)
    solve = lambda start: (
        diffrax.diffeqsolve(
            Reverse(problem),
            method.scheme,
            nodes[0],
            nodes[-1],
            None,
            start,
            by_rows(problem.eps_net),
            stepsize_controller=diffrax.StepTo(nodes),
            max_steps=len(times) - 1,
            saveat=diffrax.SaveAt(t0=True, steps=True),
        ).ys
    )
    return jax.jit(solve)(start)


def check_ddim(fixture, name, method, eps_net, process, *, steps, spacing="uniform", mask=None):
    """A trajectory of DDIM or PLMS: it ends at timestep 0, not at the data."""
    total, draws = len(process.betas), {}
    timesteps = timesteps_of(steps, total, spacing)
    fixture.check(f"{name}/timesteps", timesteps)
    if f"in/{name}/noise" in fixture.arrays:
        draws[0] = fixture.input(f"in/{name}/noise")
    if mask is not None:
        draws[PART] = fixture.input("in/masked/forward_noise")
        method = masked(method, *mask)
    problem = Problem(process, eps_net, Recorded(draws))
    times = tuple(((int(i) + 1) / total) for i in (*timesteps, 0))
    states = trajectory(method, problem, times, fixture.input("in/x_T"))
    check_share(fixture, f"{name}/x", states)
    # The original divides float32 numbers by alpha to get at the data, which leaves an error of up to 1.5e-5 in float32
    # and 1.1e-5 in float64 (guided DDIM), at alpha = 0.03.
    first = between(process, jnp.asarray(times[1]), jnp.asarray(times[0]))
    rounding = max(SHARE, 1e-6 / float(first.alpha_t))
    check_share(fixture, f"{name}/pred_x0", predictions(method, problem, times, states, mask), rounding)


def predictions(method, problem, times, states, mask):
    """The data that each step aimed at: PLMS's combined prediction is found from where its step led."""
    found = []
    for index, (t, s) in enumerate(itertools.pairwise(times)):
        z_t, z_s = states[index], states[index + 1]
        interval = between(problem.process, jnp.asarray(s), jnp.asarray(t))
        if mask is not None:
            keep, known = mask
            noise = problem.noise.draw(index, PART, z_t)
            diffused = linear.perturb(problem.process, known, times_like(z_t, jnp.asarray(t)), noise)
            z_t = keep * diffused + (1.0 - keep) * z_t
        if method.name == "PLMS":
            eps_hat = (z_t - interval.mean * z_s) / interval.fall()
        else:
            eps_hat = problem.eps(z_t, jnp.asarray(t))
        found.append(interval.data(z_t, eps_hat))
    return jnp.stack(found)


def check_ancestral(fixture, name, model, process, clip=None):
    """All timesteps, from T - 1 to 0 and on to the data."""
    total = len(process.betas)
    noise = Recorded({0: fixture.input(f"in/{name}/noise")})
    problem = Problem(process, mixture_eps(fixture, process, model), noise)
    times = tuple(i / total for i in range(total, -1, -1))
    start = fixture.input(f"out/{name}/x")[0]  # the clipped trajectory has a start of its own
    states = trajectory(METHODS["Ancestral"](clip=clip), problem, times, start)
    check_share(fixture, f"{name}/x", states)


def check_samplers(fixture):
    if fixture.slack == {}:  # all is compared to the largest entry, which needs no slack
        return fixture.leave(fixture.outputs())
    h = fixture.spec["hyperparameters"]
    short, process = discrete_process(h["ancestral_schedule"]), discrete_process(h["ddim_and_plms_schedule"])
    for name, model, clip in (
        ("ancestral_gauss", "gauss", None),
        ("ancestral_mix", "mix", None),
        ("ancestral_clipped_gauss", "gauss", 1.0),
    ):
        check_ancestral(fixture, name, model, short, clip)
    models = {model: mixture_eps(fixture, process, model) for model in ("gauss", "mix")}
    guided = guided_eps(fixture, process, h["guidance_scale"])
    calm, random, plms = METHODS["DDIM"](), METHODS["DDIM"](eta=1.0), METHODS["PLMS"]()
    partial = METHODS["DDIM"](eta=h["partial"]["eta"], temperature=h["partial"]["temperature"])
    for name, method, eps_net, settings in (
        *((f"ddim_eta0_{model}", calm, eps_net, {}) for model, eps_net in models.items()),
        *((f"ddim_eta1_{model}", random, eps_net, {}) for model, eps_net in models.items()),
        *((f"plms_{model}", plms, eps_net, {}) for model, eps_net in models.items()),
        ("cfg_ddim", calm, guided, {}),
        ("cfg_ddim_eta1", random, guided, {}),
        ("cfg_plms", plms, guided, {}),
        ("ddim_quad_mix", calm, models["mix"], dict(spacing="quad")),
        ("ddim_partial_mix", partial, models["mix"], dict(steps=h["partial"]["steps"])),
        (
            "ddim_masked_mix",
            calm,
            models["mix"],
            dict(mask=(fixture.input("in/masked/mask"), fixture.input("in/masked/x0"))),
        ),
    ):
        check_ddim(fixture, name, method, eps_net, process, **{"steps": h["ddim_steps"], **settings})


CHECKS = {"ldm_samplers": check_samplers}
