"""Weights of the published code bases in our trees, and back."""
