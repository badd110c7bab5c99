"""Networks: layers, score networks (z_t, t) -> eps_hat, and the boundary between Flax and everything else."""
