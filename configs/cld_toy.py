"""CLD-SGM on points in the plane, with a multilayer perceptron (Dockhorn, Vahdat, Kreis 2022).

lsgm train --config=configs/cld_toy.py --workdir=runs/cld_toy

`--config.data.source=` takes swiss_roll, gaussians, diamonds or checkerboard. `--config.process.name=vp` with
`--config.objective.mixed_score=gaussian` trains the VPSDE instead. Process, weighting, mixed score and widths of the
network are those published for data in the plane. The scales of the distributions, the optimiser and the number of
steps are ours, and so are the time features of the network: `--config.score.time_octaves=0` is the published network,
which is far worse (docs/cld_toys.md).
"""

from ml_collections import ConfigDict


def get_config(arg: str = "") -> ConfigDict:
    """Builds the config.

    Args:
        arg: "" for a few minutes on two CPU cores, "quick" for seconds.
    """
    if arg not in ("", "quick"):
        raise ValueError(f"configs/cld_toy.py takes no argument or 'quick', not {arg!r}")
    quick = arg == "quick"
    return ConfigDict(
        dict(
            model="sgm",
            seed=0,
            data=dict(
                name="points",
                source="swiss_roll",
                batch_size=64 if quick else 1024,
                counts=(1000, 100, 200) if quick else (100_000, 2_000, 10_000),
            ),
            process=dict(name="cld", beta_min=4.0, beta_max=4.0, mass=0.25, v0_var_scale=0.04),
            score=dict(name="mlp", hidden=(16,) if quick else (128, 128, 128, 128), time_octaves=4),
            objective=dict(weighting="unweighted", mixed_score="velocity"),
            density=dict(name="uniform", t_min=1e-5),
            optimiser=dict(
                name="adamw", learning_rate=4e-3, final=1e-5, weight_decay=0.0, warmup=100, clip=1.0
            ),
            train=dict(
                steps=40 if quick else 20_000,
                ema_decay=0.999,
                log_every=20 if quick else 100,
                eval_every=20 if quick else 2000,
            ),
            solver=dict(name="Tsit5"),
            steps=dict(name="adaptive", rtol=1e-4, atol=1e-4),
            sampling=dict(t_min=1e-3),
            eval=dict(draws=4, batch_size=500),
        )
    )
