"""LDM's training losses and their gradients, with recorded times, noise and network outputs.

Ours are sums over a sample's dimensions, the original's are means: it is divided by their number. The error is that of
our objective, `Objective.norm` under the weighting that makes it one of the noise or of the data.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import expand, sum_per_sample
from lsgm_jax.config.registry import NORMS, WEIGHTINGS
from lsgm_jax.objectives.score_matching import prediction_error, squared_error
from lsgm_jax.processes import linear
from lsgm_jax.processes.predictions import PREDICTIONS
from tests.parity.cld import channels_first, channels_last
from tests.parity.ldm_samplers import discrete_process
from tests.parity.ldm_schedules import (
    bound_weights,
    chain,
    misplaced_bound_weights,
    posterior,
    timestep_times,
)

# The original's words for what is predicted, and the weighting that is its plain error.
KINDS = {"eps": ("eps", "unweighted"), "x0": ("x_0", "x_0")}


class Case:
    """What all cases share: the process, and what the network is given."""

    def __init__(self, fixture):
        self.process = discrete_process(fixture.spec["hyperparameters"]["schedule"])
        self.timestep = np.asarray(fixture.arrays["in/t"])
        self.z_0, self.eps, self.output = (
            channels_last(fixture.input(f"in/{name}")) for name in ("x_start", "noise", "prediction")
        )
        self.log_variances = fixture.input("in/logvar")
        self.t = timestep_times(self.process, self.timestep).astype(self.z_0.dtype)
        self.z_t = linear.perturb(self.process, self.z_0, self.t, self.eps)

    def at_t(self, values):
        return values[self.timestep]

    def error(self, output, h):
        """Mean over dimensions of the norm of what the case predicts, [batch]."""
        kind, weighting = KINDS[h["parameterisation"]]
        net = lambda z_t, t: PREDICTIONS[kind](self.process, z_t, t, output)
        difference = prediction_error(net, self.z_t, self.t, self.eps)
        weight = WEIGHTINGS[weighting](self.process, self.t)
        return NORMS[h["loss_type"]](difference, weight) / self.z_0[0].size

    def terms(self, output, log_variances, h):
        """The total and its terms. Ours is `loss_simple`, and all that published models train with.

        The original can add the error under the bound's weights, its quirks included, and learn a log-variance for
        every timestep. We have neither, and compute what they make of our error.
        """
        weights = bound_weights if h["parameterisation"] == "eps" else misplaced_bound_weights
        error = self.error(output, h)
        bound = jnp.mean(self.at_t(weights(chain(self.process))) * error)
        log_variance = self.at_t(log_variances)
        learned = jnp.mean(error / jnp.exp(log_variance) + log_variance)
        total = h.get("l_simple_weight", 1.0) * learned + h.get("original_elbo_weight", 0.0) * bound
        return total, {"loss_simple": jnp.mean(error), "loss_vlb": bound, "loss_gamma": learned}


def check_case(fixture, case, name, h):
    log_variances = case.log_variances if h.get("learn_logvar", False) else jnp.zeros(len(case.process.betas))
    gradient = jax.value_and_grad(case.terms, argnums=(0, 1), has_aux=True)
    (loss, terms), (of_output, of_log_variances) = gradient(case.output, log_variances, h)
    values = terms | {
        "loss": loss,
        "grad_prediction": channels_first(of_output),
        "grad_logvar_at_t": case.at_t(of_log_variances),
    }
    for key, value in values.items():
        if f"out/{name}/{key}" in fixture.arrays:
            fixture.check_scaled(f"{name}/{key}", value, rtol=SHARE)


# The original ran in float32.
SHARE = 2e-5


def check_quantities(fixture, case):
    """What follows from the schedule at the recorded times, and what one batch is diffused to."""
    interval, process = chain(case.process), case.process
    of_data, of_state, variance, log_variance = (case.at_t(value) for value in posterior(interval))
    mean = expand(of_data, case.z_0) * case.z_0 + expand(of_state, case.z_0) * case.z_t
    by_output = squared_error(lambda z_t, t: case.output, case.z_t, case.t, case.eps)
    data = linear.expected_data(process, case.z_t, case.output, case.t)
    column = lambda values: values.reshape(-1, 1, 1, 1)
    for name, value in {
        "x_noisy": channels_first(case.z_t),
        "per_sample_l2": sum_per_sample(by_output) / case.z_0[0].size,
        "lvlb_weights_at_t": case.at_t(bound_weights(interval)),
        "lvlb_weights_x0_at_t": case.at_t(misplaced_bound_weights(interval)),
        "x0_from_prediction": channels_first(data),
        "posterior_mean": channels_first(mean),
        "posterior_variance": column(variance),
        "posterior_log_variance_clipped": column(log_variance),
    }.items():
        fixture.check_scaled(name, value, rtol=SHARE)
    # Terms near one cancel, to what in float32 is the rounding of one.
    fixture.check("prior_bpd", prior_mismatch(case), rtol=1e-5, atol=2e-7, single_atol=2e-7)


def prior_mismatch(case):
    """KL(q(z_1 | z_0) || N(0, 1)) in bits per dimension (D14)."""
    signal, noise = linear.kernel(case.process, jnp.ones((), case.z_0.dtype))
    variance = noise[0, 0] ** 2
    nats = 0.5 * ((signal[0] * case.z_0) ** 2 + variance - 1.0 - jnp.log(variance))
    return sum_per_sample(nats) / case.z_0[0].size / jnp.log(2.0)


def check_loss(fixture):
    if fixture.slack == {}:  # all is compared to the largest entry, which needs no slack
        return fixture.leave(fixture.outputs())
    case = Case(fixture)
    check_quantities(fixture, case)
    for name, h in fixture.spec["hyperparameters"]["cases"].items():
        check_case(fixture, case, name, h)


CHECKS = {"ldm_loss": check_loss}
