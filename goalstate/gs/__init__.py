"""The goal-state library. Pure: no IO, no clock, no thread."""
