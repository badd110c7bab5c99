"""The error that every conversion raises."""


class ConversionError(ValueError):
    """A state dict that does not fit the network; the message names the tensors."""
