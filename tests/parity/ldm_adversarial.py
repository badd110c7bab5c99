"""What first stages of latent diffusion train against: discriminator, perceptual distance, and their losses."""

import functools

import jax
import jax.numpy as jnp

from lsgm_jax.arrays import sum_per_sample
from lsgm_jax.autoencoders.discriminator import PatchDiscriminator
from lsgm_jax.autoencoders.gaussian import Gaussian
from lsgm_jax.autoencoders.perceptual import LPIPS
from lsgm_jax.interop.ldm_autoencoder import (
    COUNTER,
    discriminator_state,
    discriminator_variables,
    lpips_state,
    lpips_variables,
)
from lsgm_jax.objectives.gan import (
    GANLoss,
    KLFirstStage,
    VQFirstStage,
    adaptive_weight,
    balance,
    error,
    generator_loss,
    hinge_loss,
    softplus_loss,
)
from tests.parity.ldm_autoencoder import (
    check,
    check_maps,
    check_round_trip,
    float32_inputs,
    image,
    parameters,
)

LOSSES = {"hinge": "hinge", "vanilla": "softplus"}


def discriminator(fixture, module, prefix=""):
    state = parameters(fixture, prefix)
    variables = discriminator_variables(state, module)
    check_round_trip(state, discriminator_state(variables, module), left_out=[COUNTER])
    return jax.tree.map(jnp.asarray, variables)


@float32_inputs
def check_discriminator(fixture):
    h = fixture.spec["hyperparameters"]
    module = PatchDiscriminator(channels=h["base_channels"], layers=h["n_layers"])
    variables = discriminator(fixture, module)
    real, fake = image(fixture, "real"), image(fixture, "fake")
    evaluate = jax.jit(functools.partial(module.apply, train=False))
    for name, x in (("real", real), ("fake", fake)):
        check_maps(fixture, f"eval/logits_{name}", evaluate(variables, x))

    train = jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))
    logits = []
    for name, x, after in (("real", real, "after_real"), ("fake", fake, "after_both")):
        output, moved = train(variables, x)
        logits.append(output)
        variables = {**variables, **moved}
        check_maps(fixture, f"train/logits_{name}", output)
        running, prefix = discriminator_state(variables, module), f"train/{after}/"
        for statistic in (out for out in fixture.outputs() if out.startswith(prefix)):
            check(fixture, statistic, running[statistic.removeprefix(prefix)])
    check(fixture, "train/generator_loss", generator_loss(logits[1]))
    check_losses(fixture, "train", *logits)
    check_losses(fixture, "logits", image(fixture, "logits/real"), image(fixture, "logits/fake"))
    check_gan_loss(fixture, GANLoss(start=h["disc_start"], weight=h["disc_weight"]))


def check_losses(fixture, folder, real, fake):
    check(fixture, f"{folder}/hinge_loss", hinge_loss(real, fake))
    check(fixture, f"{folder}/vanilla_loss", softplus_loss(real, fake))


def check_gan_loss(fixture, gan_loss):
    gradients = (fixture.input(f"in/adaptive/grad_{name}") for name in ("reconstruction", "generator"))
    weights = [adaptive_weight(*pair) for pair in zip(*gradients, strict=True)]
    check(fixture, "adaptive/weight", gan_loss.weight * jnp.stack(weights))
    steps = fixture.arrays["in/global_step"]
    check(fixture, "disc_factor", jnp.stack([gan_loss.switch(step) for step in steps]))


@float32_inputs
def check_lpips(fixture):
    h, state = fixture.spec["hyperparameters"], parameters(fixture)
    module = LPIPS(tuple(h["widths"]), tuple(h["convolutions_per_group"]))
    variables = lpips_variables(state, module)
    check_round_trip(state, lpips_state(variables, module))
    measure = jax.jit(functools.partial(module.apply, capture_intermediates=True, mutable=["intermediates"]))
    distance, seen = measure(variables, image(fixture, "a"), image(fixture, "b"))
    check(fixture, "distance", distance[:, None, None, None])
    # Both batches go through the network together, first a, then b.
    seen = jax.tree.map(lambda maps: maps[: len(distance)], seen["intermediates"])
    check_maps(fixture, "scaled_a", seen["standardise"]["__call__"][0])
    for index, maps in enumerate(seen["features"]["__call__"][0]):
        check_maps(fixture, f"features_a/{index}", maps)


@float32_inputs
def check_first_stage_losses(fixture):
    """Of a decoder that is its last convolution, with a squared error in place of the perceptual distance.

    The json leaves the discriminator's size to the weights.
    """
    state = parameters(fixture, "discriminator.")
    module = PatchDiscriminator(
        channels=len(state["main.0.weight"]),
        layers=sum(name.endswith("running_mean") for name in state),
    )
    play = functools.partial(module.apply, train=True, mutable=["batch_stats"])
    variables = discriminator(fixture, module, "discriminator.")
    judge = jax.jit(lambda x: play(variables, x)[0])
    last = fixture.input("param/last_layer.weight").transpose(2, 3, 1, 0)
    decode = functools.partial(last_layer, image(fixture, "features"))
    check_maps(fixture, "reconstruction", decode(last))
    for name, h in fixture.spec["hyperparameters"].items():
        check_first_stage_loss(fixture, name, h, decode, last, judge)


def last_layer(features, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(features, kernel, (1, 1), "SAME", dimension_numbers=layout)


def check_first_stage_loss(fixture, name, h, decode, last, judge):
    x = image(fixture, "image")
    first_stage, penalty, logged = bottleneck(fixture, name, h)
    gan_loss = GANLoss(
        start=h["disc_start"],
        weight=h["disc_weight"],
        factor=h.get("disc_factor", 1.0),
        loss=LOSSES[h.get("disc_loss", "hinge")],
    )
    perceptual = lambda x_hat: jnp.mean((x - x_hat) ** 2, axis=(1, 2, 3))
    perceptual_weight = h.get("perceptual_weight", 1.0)
    errors = lambda x_hat: error(x, x_hat, perceptual(x_hat), perceptual_weight)
    reconstruction = lambda last: first_stage.reconstruction(errors(decode(last)))
    adaptive = balance(reconstruction, lambda last: generator_loss(judge(decode(last))), last)

    def objective(last):
        adversarial = gan_loss.autoencoder(generator_loss(judge(decode(last))), adaptive, h["global_step"])
        return first_stage.objective(reconstruction(last), penalty, adversarial)

    x_hat = decode(last)
    real, fake = judge(x), judge(x_hat)
    total, gradient = jax.value_and_grad(objective)(last)
    for output, value in {
        **logged,
        "generator_total": total,
        "grad_last_layer": gradient.transpose(3, 2, 0, 1),
        "nll_loss": reconstruction(last),
        "rec_loss": jnp.mean(errors(x_hat)),
        # Quirk: the original does not evaluate a distance whose weight is zero, and logs zero.
        "p_loss": jnp.mean(perceptual(x_hat)) if perceptual_weight > 0.0 else 0.0,
        "d_weight": gan_loss.weight * adaptive,
        "disc_factor": gan_loss.switch(h["global_step"]),
        "g_loss": generator_loss(fake),
        "discriminator_total": gan_loss.discriminator(real, fake, h["global_step"]),
        "mean_logit_real": jnp.mean(real),
        "mean_logit_fake": jnp.mean(fake),
    }.items():
        if f"{name}/{output}" in fixture.outputs():
            check(fixture, f"{name}/{output}", value)


def bottleneck(fixture, name, h):
    """The first stage, what its latents cost, and the outputs that are about that."""
    if name.startswith("vq"):
        loss = fixture.input("in/codebook_loss")
        return VQFirstStage(codebook_weight=h.get("codebook_weight", 1.0)), loss, {"quant_loss": loss}
    posterior = Gaussian.from_log_variance(image(fixture, "moments"))
    divergence = sum_per_sample(posterior.divergence_from_standard())
    first_stage = KLFirstStage(kl_weight=h["kl_weight"], log_variance=h.get("logvar_init", 0.0))
    return first_stage, divergence, {"kl_loss": jnp.mean(divergence)}


CHECKS = {
    "ldm_discriminator": check_discriminator,
    "ldm_first_stage_losses": check_first_stage_losses,
    "ldm_lpips_formula": check_lpips,
}
