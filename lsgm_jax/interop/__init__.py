"""Published checkpoints: reading their files, and converting state dicts to Flax variables and back."""
