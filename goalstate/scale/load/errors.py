"""What can go wrong with a run of load."""


class LoadError(Exception):
    """The run cannot begin, or cannot go on; the text says why and what to do."""
