"""The memory bus: a broker that is a few lists, for tests, simulations and one-process use."""

from goalstate.bus.memory.broker import Faults, MemoryBroker, MemoryReader
from goalstate.bus.memory.client import MemoryBus

__all__ = ["Faults", "MemoryBroker", "MemoryBus", "MemoryReader"]
