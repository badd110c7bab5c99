"""Forward processes z_0 -> z_t, their schedules, and the meaning of network outputs."""
