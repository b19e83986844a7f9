"""Regions made up from a seed, and what their hosts must hold, worked out independently."""
