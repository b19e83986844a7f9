"""The goal-state library. Pure: no IO, no clock, no thread; bytes and values in, bytes and values out."""
