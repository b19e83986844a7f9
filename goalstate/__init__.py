"""goalstate: distributes the goal state of a cloud network to its hosts."""

__version__ = "0.1.0"
