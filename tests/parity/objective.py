"""One complete training step of LSGM's second stage: its losses, term by term, and its gradients.

The step is the library's: `make_step` with the loss and the penalties of the joint stage. Recorded noise and times
take the place of its draws, and what its parts return is recorded.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from lsgm_jax.arrays import coordinates, expand, sum_per_sample
from lsgm_jax.interop.ncsnpp import MIXING_LOGIT
from lsgm_jax.nn.penalised import penalised
from lsgm_jax.objectives import elbo, kl
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.weightings import likelihood
from lsgm_jax.processes import linear
from lsgm_jax.training.state import create_state
from lsgm_jax.training.step import EMA, Context, make_step
from tests.parity.cld import channels_last
from tests.parity.stage import SHARED, first_vectors, in_two_passes, read
from tests.parity.watch import recorded, watch

PRIOR = ("score_net", "mixing_logit")


def check_objective(fixture):
    # Inputs and weights are float32 values: there is nothing to round, so no output can move.
    if fixture.slack == {}:
        return fixture.leave(fixture.outputs())
    case = read(fixture)
    vectors = {"vae": first_vectors(fixture, case, "vae"), "prior": first_vectors(fixture, case, "dae")}
    gradient, metrics, seen = take_step(fixture, case, vectors)
    for name in fixture.outputs() & seen.values.keys():
        value = np.asarray(seen.values[name])
        check(fixture, name, np.moveaxis(value, -1, 1) if value.ndim == 4 else value)
    check_losses(fixture, case, metrics, seen.values)
    check_penalties(fixture, case, "vae", seen.penalised["vae"], vectors["vae"])
    check_penalties(fixture, case, "dae", seen.penalised["prior"], vectors["prior"])
    prior = {name: gradient[name] for name in PRIOR}
    if is_one_objective(case.h):
        prior = seen.of_balanced or of_the_bound(case, prior, seen.of_penalty)
    check_gradients(fixture, case, "vae", gradient["vae"]["net"])
    check_gradients(fixture, case, "dae", prior["score_net"], {MIXING_LOGIT: prior["mixing_logit"]})


def check(fixture, name, value):
    """To 1e-9 of the output's largest entry; in float32 to 1e-5, or to ten times what the original moves."""
    if not fixture.has(name):
        return
    noise, largest = fixture.spec["float32_noise"][f"out/{name}"][:2]
    single = max(10.0 * noise / largest, 1e-5) if largest else 0.0
    fixture.check_scaled(name, value, rtol=1e-9, single_rtol=single)


# The step


class Seen(NamedTuple):
    """What goes out of the step beside its metrics."""

    values: dict  # by the names of outputs, and by some of our own in upper case; latents are channels last
    penalised: dict  # the weights that penalties are about
    of_penalty: dict  # gradient of the prior's penalty, where it is needed
    of_balanced: dict  # the prior's gradient of the original's one loss for both, where that is balanced


def take_step(fixture, case, vectors):
    """The gradient of one step, its metrics, and what was recorded."""
    keep = optax.GradientTransformation(
        lambda params: jax.tree.map(jnp.zeros_like, params),
        lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
    )

    @jax.jit
    def step(params, average, vectors, x, number):
        loss, key = watched(fixture, case), jax.random.key(0)
        context = Context(key, number, average, (vectors, None))
        _, seen = jax.eval_shape(lambda: loss(params, Batch(x), context)[1].memory)
        nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), seen)
        state = create_state(params, keep, (vectors, nothing)).replace(ema=average, step=number)
        return make_step(loss, keep, EMA(0.5))(state, Batch(x), key)

    x, number = channels_last(fixture.input("in/x")), jnp.asarray(case.h["global_step"])
    state, metrics = step(case.params, case.ema_params, vectors, x, number)
    return state.opt_state, metrics, state.memory[1]


def watched(fixture, case):
    """The stage's loss, which beside its memory hands out what was seen."""

    def loss(params, batch, context):
        context = context._replace(memory=context.memory[0])
        with recorded(fixture, case.h, case.model.vae.backbone.net.group_count), watch() as parts:
            value, aux = case.stage.loss(params, batch, context)
        weights = {"vae": parts["encoded"][0].penalised, "prior": penalised(params["score_net"])}
        of_penalty = gradient_of_penalty(case, params, context) if is_one_objective(case.h) else {}
        of_balanced = {}
        if is_one_objective(case.h) and case.h["kl_balance_vada"]:
            of_bound = gradient_of_bound(fixture, case, params, batch, context)
            of_balanced = jax.tree.map(jnp.add, of_bound, of_penalty)
        seen = Seen(outputs(case, parts), weights, of_penalty, of_balanced)
        return value, aux._replace(memory=(context.memory, jax.lax.stop_gradient(seen)))

    return loss


def gradient_of_penalty(case, params, context):
    def value(prior):
        weights, vectors = penalised(prior["score_net"]), context.memory["prior"]
        return case.prior_penalty(weights, vectors, context.step)[0]

    return jax.grad(value)({name: params[name] for name in PRIOR})


def gradient_of_bound(fixture, case, params, batch, context):
    """The prior's gradient of the encoder's loss, which in ours has a network that does not learn."""
    model, groups = case.model, case.model.vae.backbone.groups_per_scale

    def value(prior):
        net = model.prior.data_net(params | prior, batch)
        autoencode = lambda x: model.vae.autoencode(params["vae"], x, context.key, train=True)
        joint = elbo.joint_dsm_loss_separate_t(
            model.prior.objective,
            model.prior.process,
            autoencode,
            (net, net),
            batch.x,
            (context.key, context.key),
            case.kl(context.step),
            groups,
        )
        return jnp.mean(joint.loss - joint.prior_loss)

    with recorded(fixture, case.h, model.vae.backbone.net.group_count):
        return jax.grad(value)({name: params[name] for name in PRIOR})


# What a fixture calls its outputs, from what our parts return


def outputs(case, parts):
    (encoded,), groups = parts["encoded"], case.model.vae.backbone.groups_per_scale
    of_z_0 = cross_entropy(case, parts)
    divergence = encoded.latent.divergence(of_z_0, groups[0])
    weight, sizes = case.kl(jnp.asarray(case.h["global_step"])), kl.relative_sizes(groups)
    balanced = kl.balance(divergence, sizes)
    weighed = kl.weigh(divergence, weight, groups)
    return {
        "recon_loss_per_image": encoded.reconstruction,
        "neg_entropy_per_image": -encoded.latent.total_entropy,
        "eps_top_scale": encoded.latent.z_0,
        "cross_entropy_per_variable_top_scale": of_z_0,
        "cross_entropy_per_image": sum_per_sample(of_z_0) + encoded.latent.rest,
        "kl_per_image_and_group": divergence,
        "kl_per_group": jnp.mean(divergence, axis=0),
        "kl_coeff": weight.coefficient,
        "kl_balance_alpha": sizes,
        "kl_balance_coeffs": jnp.where(weight.balanced & (weight.coefficient < 1.0), balanced, 1.0),
        "balanced_kl_per_image": weighed,
        "nelbo_loss_per_image": weighed + encoded.reconstruction,
        "p_objective_per_image": matched(parts).prior_loss,
        **of_passes(case, parts),
    }


def matched(parts):
    (result,) = parts["shared"] or parts["separate"]
    return result


def cross_entropy(case, parts):
    """Of z_0, per dimension. Ours is summed; its constant is what the weighted errors leave of it."""
    result, values = matched(parts), of_passes(case, parts)
    weighed = expand(values["q/weight"], values["l2_term_q"]) * values["l2_term_q"]
    constant = result.cross_entropy - sum_per_sample(weighed)
    return weighed + expand(constant, weighed) / weighed[0].size


def of_passes(case, parts):
    """Times, weights, the network's output and the squared errors of the prior's pass and of the encoder's."""
    process, objective = case.model.prior.process, case.model.prior.objective
    roles = {
        "p": (objective.prior_weighting, objective.density),
        "q": (likelihood, objective.encoder_density or objective.density),
    }
    values = {}
    for index, (role, (weighting, density)) in enumerate(roles.items()):
        t = parts["draws"][-1 if index else 0].t
        signal, noise = (value.reshape(len(t)) for value in linear.kernel(process, t))
        values |= {f"{role}/t": t, f"{role}/mean_coeff": signal, f"{role}/var_t": noise**2}
        values |= {f"{role}/weight": weighting(process, t) / density.density(process, t)}
    # In joint training with a separate t the original's encoder shares a batch with the prior.
    together = jnp.concatenate if case.h["iw_sample_q"] != SHARED else lambda passes: passes[0]
    squared = [  # two passes may share a draw
        (coordinates(draw.eps)[-1] - eps_hat) ** 2
        for draw, eps_hat in zip(parts["draws"] * 2, parts["eps_hat"], strict=False)
    ]
    lists = {"pred_params": parts["net_eps"], "l2_term": squared}
    for name, passes in lists.items():
        values |= {f"{name}_p": passes[0], f"{name}_q": passes[-1], name: together(passes)}
    return values


# What the step itself says


def check_losses(fixture, case, metrics, values):
    """The two scalars that the original differentiates, from the one of ours; and the metrics."""
    penalty = metrics.get("prior_penalty", 0.0)
    check(fixture, "regularization_q", metrics.get("vae_penalty", 0.0))
    check(fixture, "regularization_p", penalty)
    check(fixture, "p_loss", metrics["prior_loss"] + penalty)
    q_loss = metrics["loss"] - metrics["prior_loss"]
    if case.h["disjoint"]:
        q_loss -= penalty  # in joint training it is part of the original's q loss as well
    if not in_two_passes(case.h):
        # The value of our one pass is the prior's; the encoder's cross entropy is in its gradient alone.
        of_z_0 = np.sum(values["cross_entropy_per_variable_top_scale"], axis=(1, 2, 3))
        q_loss += values["kl_coeff"] * np.mean(of_z_0)
    check(fixture, "q_loss", q_loss)
    means = {
        "reconstruction": "recon_loss_per_image",
        "cross_entropy": "cross_entropy_per_image",
        "prior_loss": "p_objective_per_image",
    }
    for metric, name in means.items():
        if not fixture.has(name):
            continue
        np.testing.assert_allclose(metrics[metric], np.mean(fixture.arrays[f"out/{name}"]), rtol=1e-5)


def check_penalties(fixture, case, network, weights, vectors):
    """Both parts without their weight, in NumPy: where that is zero the step has no penalty, the fixture has."""
    check(fixture, f"{network}_bn_norm", sum(np.max(np.abs(scale)) for scale in weights.scales.values()))
    if vectors:
        assert vectors.keys() == weights.kernels.keys()
    norms = [
        singular_value(np.asarray(weights.kernels[layer]), np.asarray(start.u), case.h["num_power_iter"])
        for layer, start in vectors.items()
    ]
    check(fixture, f"{network}_spectral_norm", sum(norms))


def singular_value(kernel, u, iterations):
    matrix = kernel.reshape(-1, kernel.shape[-1]).T
    for _ in range(iterations):
        v = unit(matrix.T @ u)
        u = unit(matrix @ v)
    return u @ matrix @ v


def unit(x):
    return x / max(np.linalg.norm(x), 1e-3)


def is_one_objective(h):
    """Quirk: where one pass serves a prior that is trained on the bound as well, the original has one loss for both."""
    return not h["disjoint"] and h["iw_sample_q"] == SHARED and h["iw_sample_p"].startswith("ll")


def of_the_bound(case, gradient, of_penalty):
    """The prior's gradient of the encoder's loss: the KL coefficient is on all of it but the penalty."""
    coefficient = case.kl(case.h["global_step"]).coefficient
    return jax.tree.map(lambda whole, part: coefficient * (whole - part) + part, gradient, of_penalty)


def check_gradients(fixture, case, network, gradient, others=None):
    names = case.official[network]
    leaves = {names[path]: leaf for path, leaf in flatten_dict(gradient).items()} | (others or {})
    order, name = fixture.spec["names"][network], f"grad_norms_per_parameter_{network}"
    assert set(order) == set(leaves)
    norms = np.asarray([np.linalg.norm(np.ravel(leaves[parameter])) for parameter in order])
    check(fixture, f"grad_norm_{network}", np.linalg.norm(norms))
    if not fixture.has(name):
        return
    # The original says -1 where a parameter takes no part; ours has a gradient of zero.
    expected = fixture.arrays[f"out/{name}"]
    reached = expected >= 0.0
    assert not norms[~reached].any()
    check(fixture, name, np.where(reached, norms, -1.0))
    if (
        fixture.slack is None
    ):  # small ones to their own size, too, unless they are what rounding leaves of zero
        np.testing.assert_allclose(norms[reached], expected[reached], rtol=1e-5, atol=1e-11 * expected.max())


CHECKS = {"objective": check_objective}
