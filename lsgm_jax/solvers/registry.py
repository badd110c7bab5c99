"""Solvers by name: those of diffrax and of this package. Wrap any other diffrax solver in a `Method` to use it.

Two solvers of diffrax are missing on purpose: ReversibleHeun diverges on these problems, and the memory of ItoMilstein
grows with the cube of the batch size.
"""

from collections.abc import Callable

import diffrax

from lsgm_jax.processes.linear import Process
from lsgm_jax.processes.ve import VE
from lsgm_jax.solvers.ddim import ancestral, ddim, plms
from lsgm_jax.solvers.edm import edm_heun
from lsgm_jax.solvers.exponential import deis, dpm_solver_pp, unipc
from lsgm_jax.solvers.gddim import gddim
from lsgm_jax.solvers.method import Caution, Cost, Method
from lsgm_jax.solvers.predictor_corrector import predictor_corrector
from lsgm_jax.solvers.sscs import sscs

# Name: solver, order, cost, whether it has an error estimate.
_ODE = {
    "Euler": (diffrax.Euler, 1, Cost(1), False),
    "Heun": (diffrax.Heun, 2, Cost(2), True),
    "Midpoint": (diffrax.Midpoint, 2, Cost(2), True),
    "Ralston": (diffrax.Ralston, 2, Cost(2), True),
    "Bosh3": (diffrax.Bosh3, 3, Cost(3, first=1), True),
    "Tsit5": (diffrax.Tsit5, 5, Cost(6, first=1), True),
    "Dopri5": (diffrax.Dopri5, 5, Cost(6, first=1), True),
    "Dopri8": (diffrax.Dopri8, 8, Cost(13, first=1), True),
}


# Solvers of the reverse SDE. Its noise does not depend on the state, so the Ito and Stratonovich integrals agree.
_SDE = {
    "EulerMaruyama": (diffrax.Euler, 1, Cost(1)),
    "StochasticHeun": (diffrax.Heun, 2, Cost(2)),
    "SEA": (diffrax.SEA, 1, Cost(1)),
    "SRA1": (diffrax.SRA1, 2, Cost(2)),
    "ShARK": (diffrax.ShARK, 2, Cost(2)),
    "SPaRK": (diffrax.SPaRK, 2, Cost(3)),
}


def _ode(name: str) -> Callable[[], Method]:
    scheme, order, cost, adaptive = _ODE[name]
    return lambda: Method(
        name=name,
        scheme=scheme(),
        dynamics="ode",
        order=order,
        cost=cost,
        adaptive=adaptive,
        grid="linear" if order == 1 else "quadratic",
        caution=_ruined_by_ve(name),
    )


def _sde(name: str) -> Callable[[], Method]:
    scheme, order, cost = _SDE[name]
    return lambda: Method(
        name=name,
        scheme=scheme(),
        dynamics="sde",
        order=order,
        cost=cost,
        stochastic=True,
        grid="quadratic",
        caution=_ruined_by_ve(name),
    )


def _ruined_by_ve(name: str) -> Caution:
    """Returns the caution of solvers that step in time: the noise of `VE` grows exponentially, which they overshoot."""

    def caution(process: Process, grid: str) -> str | None:
        if not isinstance(process, VE):
            return None
        return f"few steps of {name} on {type(process).__name__} are worse than those of DDIM: use DDIM, DEIS or UniPC"

    return caution


METHODS: dict[str, Callable[..., Method]] = {
    **{name: _ode(name) for name in _ODE},
    **{name: _sde(name) for name in _SDE},
    "DDIM": ddim,
    "Ancestral": ancestral,
    "PLMS": plms,
    "DEIS": deis,
    "DPMSolverPP": dpm_solver_pp,
    "UniPC": unipc,
    "EDMHeun": edm_heun,
    "PredictorCorrector": predictor_corrector,
    "SSCS": sscs,
    "GDDIM": gddim,
}
