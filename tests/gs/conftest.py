"""Property tests are reproducible: the same examples on each run, and no clock decides."""

from hypothesis import settings

settings.register_profile("goalstate", derandomize=True, deadline=None)
settings.load_profile("goalstate")
