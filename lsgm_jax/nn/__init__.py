"""Layers, score networks (z_t, t, context) -> eps_hat, and the boundary between Flax and all other packages."""
