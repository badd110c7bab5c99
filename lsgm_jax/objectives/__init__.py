"""Losses, weightings, time densities and bounds as pure functions, independent of Flax."""
