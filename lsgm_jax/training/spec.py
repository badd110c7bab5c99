"""The train section of a config: numbers of steps, EMA, logging, checkpoints, and rollback after divergence."""

import dataclasses

POSITIVE = ("steps", "log_every", "eval_every", "keep", "grad_accum_steps", "steps_per_call", "patience")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec:
    """Settings of a training run; intervals are in steps.

    Attributes:
        steps: length of the last stage.
        ema_decay: decay of the EMA parameters, which are validated, sampled from and saved as the best.
        ema_warmup: see `EMA`.
        log_every: interval of logging training metrics, which waits for the device.
        eval_every: interval of validation, sample images and checkpoints.
        keep: number of newest checkpoints that are not deleted, besides the best.
        grad_accum_steps: micro-batches per step, whose gradients are accumulated and averaged, to save memory.
        steps_per_call: steps per compiled call, for accelerators; see `scan_steps`.
        patience: consecutive steps with a non-finite loss or gradient after which training rolls back to its last
            checkpoint. Each such step is skipped and counted.
        rollbacks: number of times that training rolls back before it stops with an error.
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
            raise ValueError(f"ema_decay={self.ema_decay}: give a decay rate in [0, 1)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoStageSpec(TrainSpec):
    """Settings of an LSGM; `steps` is the length of the second stage, which trains VAE and score-based prior jointly.

    Attributes:
        vae_steps: length of the first stage, which trains the VAE with a standard Gaussian prior.
        vae_from: folder of a run whose VAE replaces the first stage; "" for none.
        freeze_vae: trains the prior alone in the second stage.
        ema_vae: keeps an EMA of the VAE as well as of the prior; the published runs have one of the prior alone.
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
    """Settings of an LDM; `steps` is the length of the second stage, which trains the prior.

    Attributes:
        first_stage_steps: length of the first stage, which trains autoencoder and discriminator.
        first_stage_from: folder of a run whose autoencoder replaces the first stage; "" for none.
        ema_first_stage: keeps an EMA of the autoencoder as well as of the prior; the published runs have none.
    """

    first_stage_steps: int
    first_stage_from: str = ""
    ema_first_stage: bool = True

    def __post_init__(self):
        super().__post_init__()
        if self.first_stage_steps < 1:
            raise ValueError(f"first_stage_steps={self.first_stage_steps}: give a positive number of steps")
