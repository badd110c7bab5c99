"""Solvers of the reverse SDE and the probability-flow ODE: sampling z_1 -> z_0, and log p(z_0)."""
