"""LSGM's second stage as a fixture's json describes it: model, weights, and the stage that trains them."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.autoencoders.backbones import Hierarchical
from lsgm_jax.config.factory import experiment
from lsgm_jax.interop.ncsnpp import mixing_logit, ncsnpp_table, ncsnpp_variables
from lsgm_jax.interop.nvae import nvae_variables, table
from lsgm_jax.models.lsgm import LSGM
from lsgm_jax.models.score_model import ScoreModel
from lsgm_jax.models.vae import VAE
from lsgm_jax.nn.network import Network
from lsgm_jax.objectives.bound import Batch
from lsgm_jax.objectives.elbo import Objective
from lsgm_jax.objectives.kl import KLSchedule
from lsgm_jax.objectives.regularisers import SingularVectors
from lsgm_jax.processes import linear
from lsgm_jax.processes.vp import VP, GeometricVP
from lsgm_jax.training.penalty import Penalty
from lsgm_jax.training.recipes.recipe import Data
from lsgm_jax.training.stage import Stage
from tests import tiny
from tests.parity.cld import channels_last
from tests.parity.likelihoods import published
from tests.parity.nvae import nvae_module
from tests.parity.processes import density_of, lsgm_process, process_of_times, weight_quirk, weighting_of
from tests.parity.regularisers import layer_of
from tests.parity.scores import image_side, lsgm_net

SHARED = "reweight_p_samples"  # the encoder's mode of taking the prior's times


class Case(NamedTuple):
    """What a fixture is about, built by us.

    Attributes:
        h: hyper-parameters.
        ema_params: parameters that the encoder's loss uses.
        official: by the original's name of the network, its name of each parameter's path.
    """

    h: dict
    model: LSGM
    stage: Stage
    kl: KLSchedule
    prior_penalty: Penalty
    params: dict
    ema_params: dict
    official: dict[str, dict]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedTimes:
    """A mode of sampling times; its quirks enter as a density that is not normalised, or is another process's."""

    mode: str
    h: dict

    @property
    def t_min(self):
        return self.h["time_eps"]

    def quantile(self, process, u):
        return density_of(self.h, self.mode).quantile(process_of_times(self.h, process), u)

    def density(self, process, t):
        normalised = density_of(self.h, self.mode).density(process_of_times(self.h, process), t)
        return normalised / weight_quirk(self.h, process, self.mode)


def published_weighting(mode):
    """Quirk: the original rescales by 1 - sigma^2, the error of Gaussian data only if variance is preserved."""

    def weighting(process, t):
        if mode.startswith("rescale") and not isinstance(process, (VP, GeometricVP)):
            return 0.5 / (1.0 - linear.sigma(process, t) ** 2)
        return weighting_of(mode)(process, t)

    return weighting


def read(fixture):
    h, vae_state = fixture.spec["hyper_parameters"], state_dict(fixture, "vae")
    nvae = nvae_module(h["vae"], vae_state)
    model = lsgm(h, nvae, channels_last(fixture.arrays["in/x"]).shape[1:])
    config = tiny.config("", *overrides(h))
    recipe = dataclasses.replace(experiment(config).training, model=model)
    stage = recipe.stages(Data([], Batch(np.zeros(())), 1))[-1]
    variables = nvae_variables(vae_state, nvae, model.data_shape)
    vae = {"net": variables["params"], "state": {"batch_stats": variables["batch_stats"]}}
    params = {"vae": vae, **prior(model, state_dict(fixture, "dae"))}
    # The original's encoder uses the EMA from the second step on; before, the EMA is the parameters.
    meets = h["update_q_ema"] and h["global_step"] > 0
    average = params | (prior(model, state_dict(fixture, "dae_ema")) if meets else {})
    as_ours = functools.partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
    entries = {"vae": table(nvae), "dae": ncsnpp_table(model.prior.net.module, model.latent_shape)[0]}
    return Case(
        h=h,
        model=model,
        stage=stage,
        kl=recipe.kl,
        prior_penalty=recipe.penalties["prior"],
        params=jax.tree.map(as_ours, params),
        ema_params=jax.tree.map(as_ours, average),
        official={
            network: {e.path[1:]: e.official for e in rows if e.path[0] == "params"}
            for network, rows in entries.items()
        },
    )


def state_dict(fixture, network):
    prefix = f"param/{network}/"
    return {name.removeprefix(prefix): a for name, a in fixture.arrays.items() if name.startswith(prefix)}


def prior(model, state):
    variables = ncsnpp_variables(state, model.prior.net.module, model.latent_shape)
    return {"score_net": variables["params"], "mixing_logit": mixing_logit(state)}


def lsgm(h, nvae, image_shape):
    assert image_side(h["vae"]["dataset"]) == image_shape[0]
    assert h["dae"]["mixed_prediction"]
    backbone = Hierarchical(image_shape=image_shape, net=nvae)
    padded = h["vae"]["dataset"] in ("mnist", "omniglot")
    encoder_mode = h["iw_sample_p"] if h["iw_sample_q"] == SHARED else h["iw_sample_q"]
    return LSGM(
        vae=VAE(
            image_shape=image_shape,
            latent_shape=backbone.latent_shape,
            backbone=backbone,
            likelihood=published(h["vae"]["decoder_dist"], h["vae"]["num_x_bits"], padded),
        ),
        prior=ScoreModel(
            shape=backbone.latent_shape,
            process=lsgm_process(h["sde"]),
            net=Network(lsgm_net(h["dae"])),
            mixing_logit_init=-3.0,
            objective=Objective(
                prior_weighting=published_weighting(h["iw_sample_p"]),
                density=PublishedTimes(mode=h["iw_sample_p"], h=h["sde"]),
                encoder_density=PublishedTimes(mode=encoder_mode, h=h["sde"]) if separate_times(h) else None,
                encoder_uses_ema=h["update_q_ema"],
                control_variate=False,
            ),
        ),
    )


def separate_times(h):
    """Whether the encoder has separate t: in disjoint training also where they have the prior's density."""
    return h["disjoint"] or h["iw_sample_q"] != SHARED


def in_two_passes(h):
    """Whether the encoder meets the network in a pass of its own; the original balances groups in one pass as well."""
    return separate_times(h) or h["kl_balance_vada"]


def overrides(h):
    """What our config says for the original's flags of this stage."""
    steps = h["num_total_iter"]
    start, end = (h["kl_const_coeff_vada"], h["kl_max_coeff_vada"]) if h["cont_kl_anneal"] else (1.0, 1.0)
    iterations = {"iterations": h["num_power_iter"], "first_iterations": h["num_power_iter"]}
    sections = {
        "joint_kl": {
            "start": start,
            "end": end,
            "constant": int(h["kl_const_portion_vada"] * steps),
            "steps": int(h["kl_anneal_portion_vada"] * steps),
            "balanced": h["kl_balance_vada"],
        },
        "encoder_density": {"name": "optimal" if separate_times(h) else "shared"},
        "joint_vae_penalty": {"weight": h["weight_decay_norm_vae"], **iterations},
        # Quirk: with this flag the original looks for convolutions of a class that its network does not have.
        "joint_prior_penalty": {
            "weight": h["weight_decay_norm_dae"],
            "spectral": not h["custom_conv_dae"],
            **iterations,
        },
    }
    return [
        f"--config.{section}.{field}={v}" for section, row in sections.items() for field, v in row.items()
    ]


def first_vectors(fixture, case, network):
    """The recorded u of each convolution, by our name of it; the power iteration's first half-step computes v."""
    net = {"vae": case.params["vae"]["net"], "dae": case.params["score_net"]}[network]
    found = {}
    for path, name in case.official[network].items():
        recorded = f"in/sn_{network}/u/{layer_of(name)}"
        if path[-1] == "kernel" and recorded in fixture.arrays:
            kernel = functools.reduce(lambda tree, key: tree[key], path, net)
            found["/".join(path[:-1])] = SingularVectors(
                fixture.input(recorded), jnp.zeros(kernel.size // kernel.shape[-1], kernel.dtype)
            )
    assert len(found) == sum(name.startswith(f"in/sn_{network}/u/") for name in fixture.arrays)
    return found
