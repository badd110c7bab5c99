"""The joint stage's loss with recorded draws, and a look at what its parts return."""

import contextlib
import functools

import pytest

from lsgm_jax.autoencoders import backbones
from lsgm_jax.models import lsgm, score_model
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives import elbo
from tests.parity.cld import channels_last
from tests.parity.stage import separate_times


@contextlib.contextmanager
def recorded(fixture, h, group_count):
    """Draws what the fixture recorded: noise of the groups, and rho and noise of the prior and then of the encoder."""
    groups = [channels_last(fixture.input(f"in/noise/group{index}")) for index in range(group_count)]
    noises = ("_p", "_q") if h["disjoint"] else ("", "")
    eps = iter([channels_last(fixture.input(f"in/diffusion_noise{who}")) for who in noises])
    rho_q = "in/rho_q" if separate_times(h) else "in/rho_p"
    rho = iter([fixture.input("in/rho_p"), fixture.input(rho_q)])
    real = elbo.sample_draw

    def sample_draw(density, spread, *rest):
        return real(density, lambda key, batch, stratum: next(rho), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "_gaussian_noise", lambda key, shapes: groups)
        patch.setattr(elbo, "sample_draw", sample_draw)
        patch.setattr(elbo, "unit_noise", lambda process, key, shape: next(eps))
        yield


# What is noted down: by a name, the function and where the loss finds it.
PARTS = {
    "encoded": (VAE, "autoencode"),
    "draws": (elbo, "sample_draw"),
    "shared": (lsgm, "joint_dsm_loss"),
    "separate": (lsgm, "joint_dsm_loss_separate_t"),
    "net_eps": (Network, "apply"),
    "eps_hat": (score_model, "mix"),
}


@contextlib.contextmanager
def watch():
    """A list for each of `PARTS`, of what it returned, in the order of the calls."""
    seen = {name: [] for name in PARTS}
    with pytest.MonkeyPatch.context() as patch:
        for name, (owner, attribute) in PARTS.items():
            patch.setattr(owner, attribute, _noting(seen[name], getattr(owner, attribute)))
        yield seen


def _noting(results, function):
    @functools.wraps(function)
    def noted(*args, **kwargs):
        results.append(function(*args, **kwargs))
        return results[-1]

    return noted
