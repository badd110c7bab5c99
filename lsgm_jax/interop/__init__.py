"""Published checkpoints' tensors to our variables, and back."""
