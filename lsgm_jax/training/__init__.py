"""State, optimisers, the step, checkpoints and the loop."""
