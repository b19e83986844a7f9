"""What can go wrong on a bus.

BusError
├── BrokerUnreachable   nobody answers at the broker's URL (retry later, or start one)
├── ProducerFenced      another producer holds the topic exclusively, or took it from this one
├── MessageTooLarge     the payload is over what the broker takes (our misuse: chunk it)
├── PositionGone        the broker no longer has the log at that position
├── BusClosed           the bus, producer or reader was closed (our misuse)
├── BrokerNotFound      no broker can be had here; the text says what was tried and what to do
└── BrokerFailed        a broker was started and died or did not get ready; with the end of its log
"""


class BusError(Exception):
    """Root of this room's errors."""


class BrokerUnreachable(BusError):
    """Nobody answers at the broker's URL."""


class ProducerFenced(BusError):
    """Another producer holds the topic exclusively, or took it over."""


class MessageTooLarge(BusError):
    """The payload is larger than the broker accepts."""


class PositionGone(BusError):
    """The broker no longer holds the log at the asked position."""


class BusClosed(BusError):
    """The bus, producer or reader was used after it was closed."""


class BrokerNotFound(BusError):
    """No broker could be found, fetched or started in any of the ways that were asked for."""


class BrokerFailed(BusError):
    """A broker process was started and died, or was not ready in time."""
