"""LSGM-JAX: score-based generative models in latent space."""

__version__ = "0.1.0"
