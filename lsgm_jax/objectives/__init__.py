"""Weightings, time densities and bounds; pure functions that never see Flax."""
