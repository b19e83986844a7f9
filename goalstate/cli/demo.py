"""`goalstate demo`: the whole system at work on this machine, and an independent look at the result.

Broker, publisher and a fleet of hosts run as processes of their own. What the hosts hold at the end
is compared with what the oracle computes from the same intent, by code that shares nothing with
the publisher's derivation. No process outlives the command.
"""

from __future__ import annotations


