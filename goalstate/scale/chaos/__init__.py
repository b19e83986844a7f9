"""A region of real processes under faults: killed, stopped, cut off; and what must hold of it."""
