"""Training: state, optimisers, the training step, checkpoints and the loop."""
