"""The embedded broker: for machines that have neither Java nor Docker.

One small process on loopback (`python -m goalstate.bus.embedded`) that keeps topics as logs in
memory and in one append-only file, and a client (`EmbeddedBus`) with which other processes use it
at `embedded://127.0.0.1:PORT`. It passes the same conformance kit as Apache Pulsar: 100 readers of
a burst of 2,000 messages, 500 topics, messages of 4 MiB, kill -9 and restart at the same port.

That is also its scale: demos and tests of up to a few hundred hosts on one machine. It is not for
production. It has one thread and no replicas, everything that it holds is also in memory, nothing
is ever deleted, and what was acknowledged survives the end of the process but (there is no fsync)
not that of the machine. It has no authentication and therefore listens on loopback only.
"""

from goalstate.bus.embedded.client import EmbeddedBus

__all__ = ["EmbeddedBus"]
