"""z_1 -> z_0 and log p(z_0): everything that integrates."""
