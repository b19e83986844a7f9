"""Measurements of the whole, each beside its goal, and beside the plain Pulsar client where that
is the measure of things. `python -m bench` runs them; see `bench.__main__`."""
