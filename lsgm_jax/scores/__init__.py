"""(z_t, t) -> eps_hat: score networks and their parameterisation."""
