"""z_0 -> z_t: forward processes. No networks here."""
