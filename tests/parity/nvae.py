"""LSGM's NVAE: the network, its latents and their KL terms, with stored and with batch statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lsgm_jax.arrays import sum_per_sample
from lsgm_jax.autoencoders.nvae import NVAE, join_groups, split_groups
from lsgm_jax.autoencoders.nvae_flow import flow_masks
from lsgm_jax.interop.nvae import nvae_state, nvae_variables
from lsgm_jax.objectives import kl
from tests.parity import likelihoods
from tests.parity.cld import channels_first, channels_last


def nvae_module(h, state):
    """The module of a fixture's hyper-parameters; only the likelihood's channels are read off the weights."""
    return NVAE(
        scales=h["num_latent_scales"],
        groups_per_scale=h["num_groups_per_scale"],
        latent_channels=h["num_latent_per_group"],
        encoder_channels=h["num_channels_enc"],
        decoder_channels=h["num_channels_dec"],
        channel_mult=tuple(h["channel_mult"]),
        pre_blocks=h["num_preprocess_blocks"],
        pre_cells=h["num_preprocess_cells"],
        post_blocks=h["num_postprocess_blocks"],
        post_cells=h["num_postprocess_cells"],
        encoder_cells=h["num_cell_per_cond_enc"],
        decoder_cells=h["num_cell_per_cond_dec"],
        arch=h["arch_instance"],
        use_se=h["use_se"],
        input_skip=h["progressive_input_vae"] == "input_skip",
        flows=h["num_nf"],
        log_sigma_bound=h["log_sig_q_scale"],
        out_channels=state["image_conditional.1.weight"].shape[0],
    )


def check_nvae(fixture):
    # Inputs and weights are float32 values: there is nothing to round, so no output can move.
    if fixture.slack == {}:
        return fixture.leave(fixture.outputs())
    state = {key.removeprefix("param/"): a for key, a in fixture.arrays.items() if key.startswith("param/")}
    module = nvae_module(fixture.spec["hyper_parameters"], state)
    check_masks(fixture, module)
    as_ours = functools.partial(jnp.asarray, dtype=jnp.zeros(()).dtype)
    x = channels_last(fixture.input("in/x"))
    variables = jax.tree.map(as_ours, nvae_variables(state, module, x.shape[1:]))
    noises = tuple(
        channels_last(fixture.input(f"in/noise/group{index}")) for index in range(module.group_count)
    )
    assert module.latent_shapes(x.shape[1:]) == tuple(noise.shape[1:] for noise in noises)

    evaluate = jax.jit(functools.partial(module.apply, train=False))
    check_mode(fixture, module, "eval", evaluate(variables, x, noises))
    train = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    output, moved = train(variables, x, noises)
    check_mode(fixture, module, "train", output)

    running = nvae_state({**variables, **moved}, module)
    for name in fixture.outputs():
        if name.startswith("bn_after_train_forward/"):
            fixture.check_scaled(name, running[name.removeprefix("bn_after_train_forward/")])
    if "eval/generated_image" in fixture.outputs():
        features = jax.jit(functools.partial(module.apply, method="decode"))(variables, noises)
        likelihoods.check_generated(fixture, features)


def check_masks(fixture, module):
    """The masks are no parameters; the fixture has the original's for each convolution of each flow."""
    convolutions = ("conv.convz.0", "conv.convz.2", "mu.conv_0")
    for index in range(module.group_count * module.flows):
        for cell, mirrored in (("cell1", False), ("cell2", True)):
            masks = flow_masks(module.latent_channels, mirrored=mirrored)
            for convolution, mask in zip(convolutions, masks, strict=True):
                theirs = fixture.arrays[f"aux/armask/nf_cells.{index}.{cell}.{convolution}"]
                np.testing.assert_array_equal(mask, theirs.transpose(2, 3, 1, 0))


def check_mode(fixture, module, mode, output):
    check = lambda name, value: fixture.check_scaled(f"{mode}/{name}", value)
    check("logits", channels_first(output.features))
    likelihoods.check_decoder(fixture, mode, output.features)
    for index, group in enumerate(output.groups):
        check_group(fixture, f"{mode}/group{index}", group)

    latents = [group.eps for group in output.groups]
    per_scale = module.groups_per_scale
    for scale in range(module.scales):
        here = latents[scale * per_scale : (scale + 1) * per_scale]
        check(f"eps_scale{scale}", channels_first(join_groups(here)))
        for eps, back in zip(here, split_groups(join_groups(here), per_scale), strict=True):
            np.testing.assert_array_equal(eps, back)

    log_q = jnp.stack([sum_per_sample(g.posterior.log_density(g.before_flow)) for g in output.groups], axis=1)
    log_p = jnp.stack([sum_per_sample(jax.scipy.stats.norm.logpdf(eps)) for eps in latents], axis=1)
    check("log_q_total", log_q.sum(axis=1))
    check("log_p_total", log_p.sum(axis=1))
    check("kl_per_group", log_q - log_p)
    check_balance(fixture, f"{mode}/stage1", log_q - log_p, kl.relative_sizes((per_scale,) * module.scales))


def check_group(fixture, prefix, group):
    log_q = group.posterior.log_density(group.before_flow)
    values = {
        "mu_q": group.posterior.mean,
        "log_sigma_q": group.posterior.log_std,
        "eps": group.eps,
        "log_q": log_q,
    }
    if f"{prefix}/eps_before_flow" in fixture.outputs():
        values["eps_before_flow"] = group.before_flow
    for name, value in values.items():
        fixture.check_scaled(f"{prefix}/{name}", channels_first(value))


def check_balance(fixture, prefix, divergence, sizes):
    """The KL coefficient at which the first stage was recorded is part of the outputs' names."""
    coefficients = kl.balance(divergence, sizes)
    for name in fixture.outputs():
        if name.startswith(f"{prefix}_kl_balance_coeffs_at_"):
            fixture.check_scaled(name, coefficients)
        elif name.startswith(f"{prefix}_balanced_kl_at_"):
            fixture.check_scaled(name, float(name.rsplit("_", 1)[1]) * divergence @ coefficients)


CHECKS = {"nvae": check_nvae}
