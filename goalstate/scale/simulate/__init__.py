"""A deterministic simulation of a region under faults: one seed, one run, exactly repeatable."""
