"""LDM's EMA of the weights and its learning rates, as multiples of the peak's."""

import re

import jax.numpy as jnp
import numpy as np
import optax

from lsgm_jax.training.optim import LearningRate
from lsgm_jax.training.step import EMA


def averages(average, weights):
    """The average after every update; it starts as the weights do.

    The original counts updates from 1 where our steps count from 0, so its warm-up is one step ahead.
    """
    followed = [{"w": weights[0]}]
    for update, value in enumerate(weights[1:], start=1):
        followed.append(average.update(followed[-1], {"w": value}, jnp.asarray(update)))
    return jnp.stack([value["w"] for value in followed])


def read_average(words):
    decay, warmup = re.fullmatch(r"decay ([\d.]+) (with|without) warm-up", words).groups()
    return EMA(float(decay), warmup=warmup == "with")


def warmup_cosine(h):
    return LearningRate(
        learning_rate=h["lr_max"],
        final=h["lr_min"],
        warmup=h["warm_up_steps"],
        start=h["lr_start"],
        decay_steps=h["max_decay_steps"],
    ).schedule(h["max_decay_steps"])


def cosine_cycles(h):
    """One schedule of ours after the other: we have no cycles."""
    return _in_cycles(
        h,
        [
            LearningRate(learning_rate=most, final=least, warmup=warmup, start=start).schedule(length)
            for start, most, least, warmup, length in _cycles(h)
        ],
    )


def linear(h):
    """Ours where nothing declines after the warm-up, as in all that is published.

    Quirk: the original's decline is counted from the start of the cycle, so it jumps at the end of the warm-up. That,
    too, is none of ours: it is composed of optax's here.
    """
    return _in_cycles(
        h,
        [
            LearningRate(learning_rate=most, warmup=warmup, start=start).schedule(length)
            if most == least
            else optax.join_schedules(
                [optax.linear_schedule(start, most, warmup), _declined(most, least, warmup, length)], [warmup]
            )
            for start, most, least, warmup, length in _cycles(h)
        ],
    )


def _declined(most, least, warmup, length):
    decline = optax.linear_schedule(most, least, length)
    return lambda step: decline(step + warmup)


def _cycles(h):
    names = ("f_start", "f_max", "f_min", "warm_up_steps", "cycle_lengths")
    return list(zip(*(h[name] for name in names), strict=True))


def _in_cycles(h, schedules):
    """The original lets a cycle's last step be that at which the next one starts."""
    starts = np.concatenate([[0], np.cumsum(h["cycle_lengths"][:-1])]).astype(int)

    def rate(step):
        cycle = max(int(np.searchsorted(starts, step, side="left")) - 1, 0)
        return schedules[cycle](step - starts[cycle])

    return rate


RATES = {"warmup_cosine": warmup_cosine, "linear": linear, "cosine_cycles": cosine_cycles}


def check_training(fixture):
    h = fixture.spec["hyperparameters"]
    words = {name.replace("_", "."): text for name, text in h["ema"].items()}
    for name in fixture.arrays:
        if name.startswith("in/ema_"):
            average = read_average(words[name.split("/")[1].removeprefix("ema_").replace("_", ".")])
            output = name.removeprefix("in/").replace("weights", "average")
            fixture.check(output, averages(average, fixture.input(name)), rtol=1e-6, atol=1e-7)
    steps = fixture.arrays["in/lr_steps"]
    for name, numbers in h["lr"].items():
        rate = RATES[name](numbers)
        fixture.check(f"lr_{name}", [rate(int(step)) for step in steps], rtol=1e-6, single_atol=1e-7)


CHECKS = {"ldm_ema_and_lr": check_training}
