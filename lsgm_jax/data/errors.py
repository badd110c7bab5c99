"""What goes wrong with data."""


class DataError(Exception):
    """The data set cannot be read; the message says what to do."""
