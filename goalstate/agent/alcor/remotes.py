"""The file that says which hosts' agents have to be pushed to, and where they are.

    host-000003: 10.0.0.3:50152
    h7: {address: 10.0.0.7:50152, group: rack-1}

Without a group the host is a simulated one, and its name says its group (see `gs/naming`).
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from goalstate.gs.naming import SimulatedHost, simulated_host
from goalstate.process import StartError


class RemoteHost(NamedTuple):
    """A host, and the address of its agent."""

    host: str
    group: str
    address: str
    #: What its name says of it; None: nothing.
    simulated: SimulatedHost | None


def load(path: Path, *, prefix: str, group_size: int) -> list[RemoteHost]:
    """The hosts of a file, in its order. Raises StartError, which names what is wrong and where."""
    try:
        text = path.read_text("utf-8")
        # Keys that come twice would hide one another.
        node = yaml.compose(text, yaml.SafeLoader)
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise StartError(f"the file of remote agents cannot be read: {error}") from error
    if not isinstance(document, dict) or not document:
        raise StartError(f"{path} is no mapping of hosts to the addresses of their agents")
    assert isinstance(node, yaml.MappingNode)
    for name, count in Counter(key.value for key, _ in node.value).items():
        if count > 1:
            raise StartError(f"{path}: {name} is there {count} times")
    return [_host(path, name, value, prefix, group_size) for name, value in document.items()]


def _host(path: Path, name: Any, value: Any, prefix: str, group_size: int) -> RemoteHost:
    if not isinstance(name, str) or not name:
        raise StartError(f"{path}: {name!r} is no name of a host")
    fields = value if isinstance(value, dict) else {"address": value}
    if unknown := sorted(map(str, fields.keys() - {"address", "group"})):
        raise StartError(f"{path}: {name}: unknown key {unknown[0]!r}; address and group are known")
    address, group = fields.get("address"), fields.get("group")
    if not isinstance(address, str) or not re.fullmatch(r".+:\d{1,5}", address):
        raise StartError(f"{path}: {name}: {address!r} is no address; write HOST:PORT")
    number = re.fullmatch(rf"{re.escape(prefix)}-(\d{{6,7}})", name)
    simulated = None
    if number is not None:
        simulated = simulated_host(int(number[1]), prefix=prefix, group_size=group_size)
        if group is not None:
            simulated = simulated._replace(group=group)
    if group is None and simulated is not None:
        group = simulated.group
    if not isinstance(group, str):
        raise StartError(
            f"{path}: {name}: it has no group, and is no {prefix}-NNNNNN whose name says it"
        )
    return RemoteHost(name, group, address, simulated)
