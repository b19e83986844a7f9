"""A publisher of one's own: goal state out of a file of machines, in the plain Alcor schema.

    python publisher.py --broker URL --region NAME --memory memory.json network.json

It needs a client of the broker (`goalstate.bus`; with Pulsar, `pulsar-client` would do as well),
the generated protobuf classes and xxhash, and nothing of `goalstate.dpm`. Each run publishes what
is different from the run before, which it remembers in a file. That makes each run a new epoch.

What agents check, and what must therefore be right: the mark of each message (`epoch`, `seq`,
`after`), the checksum of its bytes, the digest of what is on the stream after it, on an inbox also
the digest of what each host concerned then holds, and the revision of every resource.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from goalstate.bus.base import Bus
from goalstate.bus.connect import connect
from goalstate.gs.pb.alcor.schema import goalstate_pb2, resources_pb2

#: Word for a kind → its number, and its map in GoalStateV2. A subscription has none.
KINDS = {
    "vpc": (resources_pb2.VPC, "vpc_states"),
    "subnet": (resources_pb2.SUBNET, "subnet_states"),
    "port": (resources_pb2.PORT, "port_states"),
    "neighbor": (resources_pb2.NEIGHBOR, "neighbor_states"),
    "subscription": (1000, ""),
}
CREATE, UPDATE, DELETE = resources_pb2.CREATE, resources_pb2.UPDATE, resources_pb2.DELETE
FULL = resources_pb2.FULL


class Key(NamedTuple):
    """A resource on a stream; `host` is empty but on an inbox."""

    host: str
    kind: str
    id: str


#: Stream → what must be on it: configurations without a revision.
Desired = dict[str, dict[Key, Any]]


def desired(network: Any, prefix: str) -> Desired:
    """What follows from a network; the test beside us has one."""
    vpc, subnet = network["vpc"], network["subnet"]
    stream = f"vpc/{vpc['id']}"
    found: Desired = {stream: {}}
    shared = found[stream]
    shared[Key("", "vpc", vpc["id"])] = resources_pb2.VpcConfiguration(
        id=vpc["id"], update_type=FULL, cidr=vpc["cidr"], tunnel_id=vpc["tunnel_id"]
    )
    shared[Key("", "subnet", subnet["id"])] = resources_pb2.SubnetConfiguration(
        id=subnet["id"],
        update_type=FULL,
        network_type=resources_pb2.VXLAN,
        vpc_id=vpc["id"],
        cidr=subnet["cidr"],
        tunnel_id=vpc["tunnel_id"],
    )
    hosts = {host["id"]: host for host in network["hosts"]}
    for host in hosts.values():
        found.setdefault(f"inbox/{host['group']}", {})
    for machine in network["machines"]:
        host = hosts[machine["host"]]
        neighbor = resources_pb2.NeighborConfiguration(
            id=machine["id"],
            update_type=FULL,
            vpc_id=vpc["id"],
            mac_address=machine["mac"],
            host_ip_address=host["ip"],
            host_mac_address=host["mac"],
        )
        port = resources_pb2.PortConfiguration(
            id=machine["id"],
            update_type=FULL,
            vpc_id=vpc["id"],
            mac_address=machine["mac"],
            admin_state_up=True,
        )
        port.host_info.ip_address, port.host_info.mac_address = host["ip"], host["mac"]
        neighbor.fixed_ips.add(subnet_id=subnet["id"], ip_address=machine["ip"])
        port.fixed_ips.add(subnet_id=subnet["id"], ip_address=machine["ip"])
        shared[Key("", "neighbor", machine["id"])] = neighbor
        inbox = found[f"inbox/{host['group']}"]
        inbox[Key(host["id"], "port", machine["id"])] = port
        # Without this the host would not read the VPC's stream.
        inbox[Key(host["id"], "subscription", stream)] = goalstate_pb2.NodeSubscribeInfo(
            stream=stream, topic=topic(prefix, stream)
        )
    return found


def topic(prefix: str, stream: str) -> str:
    kind, _, id_ = stream.partition("/")
    return f"{prefix}/{kind}.{id_}.log"  # of ids in plain letters; others are encoded


def serialized(configuration: Any) -> bytes:
    """The payload of a resource: always the same bytes for the same; none for one that is gone."""
    return b"" if configuration is None else configuration.SerializeToString(deterministic=True)


class Log:
    """One stream as it was published so far; it is what the file remembers."""

    def __init__(self, stream: str, remembered: Any) -> None:
        self.stream = stream
        self.epoch, self.sequence = remembered.get("mark", (0, 0))
        #: Key → payload (empty once it is deleted), and the newest revision.
        self.payloads = {Key(*key): bytes.fromhex(p) for key, p in remembered.get("payloads", ())}
        self.revisions = {Key(*key): number for key, number in remembered.get("revisions", ())}

    def remember(self) -> dict[str, Any]:
        return {
            "mark": (self.epoch, self.sequence),
            "payloads": [(key, payload.hex()) for key, payload in self.payloads.items()],
            "revisions": list(self.revisions.items()),
        }

    def digest(self, host: str = "") -> int:
        """The sum of the hashes of what is there; a kind's number plus one seeds its hashes."""
        return (
            sum(
                xxhash.xxh3_128_intdigest(payload, KINDS[key.kind][0] + 1)
                for key, payload in self.payloads.items()
                if payload and host in ("", key.host)
            )
            % 2**128
        )

    def changes(self, wanted: dict[Key, Any]) -> list[dict[Key, Any]]:
        """What each message is to say, none or up to two: first what is new, then what is gone.

        Two, because an id is in a message once, and a machine may move between two hosts of one
        inbox; and in this order, so that nobody loses what he is about to get anew.
        """
        put: dict[Key, Any] = {}
        gone: dict[Key, Any] = {}
        for key, configuration in wanted.items():
            configuration.revision_number = self.revisions.get(key, 0)
            if serialized(configuration) != self.payloads.get(key):
                put[key] = configuration
        for key, payload in self.payloads.items():
            if payload and key not in wanted:
                gone[key] = None
        return [one for one in (put, gone) if one]

    def message(self, changes: dict[Key, Any], epoch: int) -> tuple[bytes, dict[str, str]]:
        """The next message: payload and properties."""
        state = goalstate_pb2.GoalStateV2(format_version=102)
        for key, configuration in changes.items():
            revision = self.revisions[key] = self.revisions.get(key, 0) + 1
            section = state.host_resources[key.host] if key.host else None
            if configuration is not None:
                configuration.revision_number = revision
            if key.kind == "subscription":
                assert section is not None, "only inboxes have subscriptions"
                fact = configuration or goalstate_pb2.NodeSubscribeInfo(
                    subscribe_operation=goalstate_pb2.Unsubscribe,
                    stream=key.id,
                    revision_number=revision,
                )
                section.subscriptions.append(fact)
            else:
                number, field = KINDS[key.kind]
                entry = getattr(state, field)[key.id]
                entry.operation_type = CREATE if revision == 1 else UPDATE
                if configuration is None:
                    entry.operation_type = DELETE
                    entry.configuration.id = key.id
                    entry.configuration.revision_number = revision
                else:
                    entry.configuration.CopyFrom(configuration)
                if section is not None:
                    section.resources.add(type=number, id=key.id)
            self.payloads[key] = serialized(configuration)
        for host, section in state.host_resources.items():
            section.digest = self.digest(host).to_bytes(16, "big")
        payload = state.SerializeToString(deterministic=True)
        return payload, self.envelope(payload, epoch)

    def envelope(self, payload: bytes, epoch: int) -> dict[str, str]:
        after = f"{self.epoch}/{self.sequence}"
        begins = self.epoch != epoch
        self.epoch, self.sequence = epoch, 1 if begins else self.sequence + 1
        properties = {
            "schema": "102",
            "stream": self.stream,
            "epoch": str(self.epoch),
            "seq": str(self.sequence),
            "kind": "delta",
            "chunk": "1/1",
            "change": str(epoch),
            "digest": f"{self.digest():032x}",
            "checksum": xxhash.xxh3_64_hexdigest(payload),
            "published_ns": str(time.time_ns()),
        }
        return {**properties, "after": after} if begins else properties


async def publish(bus: Bus, prefix: str, network: Any, memory: Any) -> dict[str, Any]:
    """Publish what is different from what is remembered; gives what is to be remembered."""
    epoch = memory.get("epoch", 0) + 1
    logs = {stream: Log(stream, old) for stream, old in memory.get("streams", {}).items()}
    wanted = desired(network, prefix)
    for stream in wanted:
        logs.setdefault(stream, Log(stream, {}))
    for stream, log in sorted(logs.items()):
        messages = log.changes(wanted.get(stream, {}))
        if not messages:
            continue
        producer = await bus.open_producer(topic(prefix, stream), exclusive=True)
        for changes in messages:
            payload, properties = log.message(changes, epoch)
            await producer.send(payload, properties=properties)
        await producer.close()
    return {"epoch": epoch, "streams": {stream: log.remember() for stream, log in logs.items()}}


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--broker", required=True)
    parser.add_argument("--region", required=True)
    parser.add_argument("--memory", required=True, type=Path)
    parser.add_argument("network", type=Path)
    given = parser.parse_args()
    network = json.loads(given.network.read_text("utf-8"))
    memory = json.loads(given.memory.read_text("utf-8")) if given.memory.exists() else {}
    bus = await connect(given.broker)
    try:
        memory = await publish(bus, f"persistent://goalstate/{given.region}", network, memory)
    finally:
        await bus.close()
    given.memory.write_text(json.dumps(memory), "utf-8")


if __name__ == "__main__":
    asyncio.run(main())
