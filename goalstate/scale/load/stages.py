"""The stages of a change's path, and what is measured of them."""

from __future__ import annotations

from enum import StrEnum


class Stage(StrEnum):
    """Each is from a change's intended start; the first four and the last are one value a change,
    `received` and `applied` one for each host that the change is for."""

    #: The generator really sent it: how far it is behind its schedule itself.
    SENT = "sent"
    #: The DPM answered: it is durable.
    ACCEPTED = "accepted"
    #: The DPM handed its first message to the client of the broker, by the message's stamp.
    PUBLISHED = "published"
    #: The first host, and the last of all hosts concerned, has all of it applied.
    FIRST_HOST = "first host"
    LAST_HOST = "last host"
    #: A host's core took a message of it; a host's data plane has it.
    RECEIVED = "received"
    APPLIED = "applied"
    #: Not of a change: from the time at which a host was to join until it has all that it needs.
    JOINED = "joined"


#: Of each distribution these are shown, and can be a threshold.
PERCENTILES = (50.0, 75.0, 90.0, 99.0, 99.9, 99.99)

#: By whom each is recorded: a generator, a fleet, or from the records of all fleets together.
OF_GENERATORS = (Stage.SENT, Stage.ACCEPTED)
OF_FLEETS = (Stage.RECEIVED, Stage.APPLIED, Stage.JOINED)
OF_ALL_FLEETS = (Stage.PUBLISHED, Stage.FIRST_HOST, Stage.LAST_HOST)
