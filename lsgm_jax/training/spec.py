"""Length and rhythm of training, and what it does when something goes wrong: the train section of a config."""

import dataclasses

POSITIVE = ("steps", "log_every", "eval_every", "keep", "grad_accum_steps", "steps_per_call", "patience")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """How long to train, how often to look, in steps.

    Attributes:
        ema_decay: of the averaged parameters, which are the ones validated, sampled and kept as best.
        ema_warmup: see `EMA`.
        log_every: scalars; reading them waits for the device.
        eval_every: validation, picture and checkpoint.
        keep: newest checkpoints that stay, beside the best.
        grad_accum_steps: micro-batches of a batch, whose gradients are accumulated and averaged: less memory.
        steps_per_call: steps that devices take without asking Python; for accelerators, see `scan_steps`.
        patience: steps in a row whose loss or gradient is no number, after which training goes back to its last
            checkpoint; single ones are skipped and counted.
        rollbacks: times it may go back before it gives up.
    """

    steps: int
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    log_every: int = 50
    eval_every: int = 1000
    keep: int = 2
    grad_accum_steps: int = 1
    steps_per_call: int = 1
    patience: int = 3
    rollbacks: int = 2

    def __post_init__(self):
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: give a positive number")
        if self.rollbacks < 0:
            raise ValueError(f"rollbacks={self.rollbacks}: give a number of times, or 0 to give up at once")
        if not 0.0 <= self.ema_decay < 1.0:
            raise ValueError(f"ema_decay={self.ema_decay}: an average needs a decay in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStageSpec(TrainSpec):
    """The same for an LSGM, whose `steps` are those of the second stage: VAE and score prior together.

    Attributes:
        vae_steps: first stage, the VAE with its Gaussian prior.
        vae_from: folder of another run whose VAE is taken in place of a first stage; "" for none.
        freeze_vae: train the prior alone in the second stage.
        ema_vae: whether the VAE is averaged like the prior; the published runs average the prior alone.
    """

    vae_steps: int
    vae_from: str = ""
    freeze_vae: bool = False
    ema_vae: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.vae_steps < 1:
            raise ValueError(f"vae_steps={self.vae_steps}: give a positive number of steps")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LDMTrainSpec(TrainSpec):
    """The same for an LDM, whose `steps` are those of the prior.

    Attributes:
        first_stage_steps: before them, autoencoder and discriminator.
        first_stage_from: folder of another run whose first stage is taken; "" for none.
        ema_first_stage: whether the autoencoder is averaged like the prior; the published ones are not.
    """

    first_stage_steps: int
    first_stage_from: str = ""
    ema_first_stage: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.first_stage_steps < 1:
            raise ValueError(f"first_stage_steps={self.first_stage_steps}: give a positive number of steps")
