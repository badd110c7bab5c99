"""The compositions: each model is readable alone."""
