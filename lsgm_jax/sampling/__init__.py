"""A trained run, and what is drawn from it: samples, what lies between them, their trajectories, pictures completed."""
