"""What a conversion raises."""


class ConversionError(ValueError):
    """A checkpoint that is not the network's: one line that names the tensors."""
