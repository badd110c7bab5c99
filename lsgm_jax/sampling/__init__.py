"""A trained run, its samples and their trajectories, interpolation, inpainting and super-resolution."""
