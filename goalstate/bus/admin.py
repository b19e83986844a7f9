"""What is asked of Apache Pulsar's admin REST API: its health, its version, namespaces, retention.

A topic is a row of ledgers. Retention takes whole ledgers that are closed: it counts from when a
ledger was closed, so no message goes before its time, and one goes later by as long as a ledger
stays open (at most the broker's `managedLedgerMaxLedgerRolloverTimeMinutes`, 240 unless set).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import math
import urllib.error
import urllib.request
from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from goalstate.bus.errors import BrokerUnreachable, BusError

#: Seconds to wait for one answer.
_TIMEOUT = 10.0
_CONFLICT, _NOT_FOUND = 409, 404
#: A broker is asked directly, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def request(
    admin_url: str, method: str, path: str, body: object = None, *, timeout: float = _TIMEOUT
) -> tuple[int, bytes]:
    """One request; gives the status and the body. Blocks. Raises BrokerUnreachable."""
    ask = urllib.request.Request(
        admin_url.rstrip("/") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with _OPENER.open(ask, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, http.client.HTTPException) as error:
        raise BrokerUnreachable(f"nobody answers at {admin_url}: {error}") from error


def healthy(admin_url: str) -> bool:
    """Whether the broker takes and delivers messages, by its own account. Blocks up to 10 s."""
    try:
        status, body = request(admin_url, "GET", "/admin/v2/brokers/health")
    except BrokerUnreachable:
        return False
    return status == http.client.OK and body.strip() == b"ok"


def version(admin_url: str) -> str:
    """The broker's version. Blocks. Raises BrokerUnreachable, BusError."""
    return _checked(admin_url, "GET", "/admin/v2/brokers/version").decode().strip().strip('"')


async def ensure_namespace(
    admin_url: str,
    tenant: str,
    namespace: str,
    *,
    retention_s: float | None = None,
    for_good: Collection[str] = (),
) -> None:
    """Create tenant and namespace where missing, and set how long what is on its topics is kept.

    `retention_s`: seconds, of which the broker makes whole minutes, rounded up; None: for ever. The
    topics `for_good` (full names) are made, and kept for ever all the same. Without a retention
    Pulsar may forget what no durable subscription waits for, and readers have none. Doing it again
    changes nothing. Raises BrokerUnreachable, BusError.
    """
    await asyncio.to_thread(
        _ensure_namespace, admin_url, tenant, namespace, retention_s, frozenset(for_good)
    )


def topics(admin_url: str, tenant: str, namespace: str) -> list[str]:
    """The persistent topics of a namespace, none where there is no such namespace.

    Nothing is made by asking, unlike by reading. Blocks. Raises BrokerUnreachable, BusError.
    """
    path = f"/admin/v2/persistent/{quote(tenant, safe='')}/{quote(namespace, safe='')}"
    status, body = request(admin_url, "GET", path)
    if status == _NOT_FOUND:
        return []
    if status != http.client.OK:
        raise _refusal(admin_url, "GET", path, status, body)
    found: list[str] = json.loads(body)
    return found


def delete_namespace(admin_url: str, tenant: str, namespace: str) -> None:
    """Delete a namespace with all its topics, whoever is connected; harmless if it is not there.

    Topic by topic: few brokers allow the forced deletion of a namespace. Blocks. Raises
    BrokerUnreachable, BusError.
    """
    paths = [
        f"/admin/v2/persistent/{quote(tenant, safe='')}/{quote(namespace, safe='')}/"
        f"{quote(topic.rpartition('/')[2], safe='')}?force=true"
        for topic in topics(admin_url, tenant, namespace)
    ]
    paths.append(f"/admin/v2/namespaces/{quote(tenant, safe='')}/{quote(namespace, safe='')}")
    for path in paths:
        status, body = request(admin_url, "DELETE", path)
        if status >= http.client.BAD_REQUEST and status != _NOT_FOUND:
            raise _refusal(admin_url, "DELETE", path, status, body)


def _ensure_namespace(
    admin_url: str,
    tenant: str,
    namespace: str,
    retention_s: float | None,
    for_good: Collection[str],
) -> None:
    clusters: list[Any] = json.loads(_checked(admin_url, "GET", "/admin/v2/clusters"))
    tenant_path = quote(tenant, safe="")
    space_path = f"/admin/v2/namespaces/{tenant_path}/{quote(namespace, safe='')}"
    _checked(
        admin_url,
        "PUT",
        f"/admin/v2/tenants/{tenant_path}",
        {"adminRoles": [], "allowedClusters": [name for name in clusters if name != "global"]},
    )
    _checked(admin_url, "PUT", space_path, {})
    if retention_s is not None:
        # First of all: at no moment may the namespace's bound be theirs.
        for topic in sorted(for_good):
            path = topic_path(topic)
            _checked(admin_url, "PUT", path)
            _checked(admin_url, "POST", f"{path}/retention", _retention(None))
    _checked(admin_url, "POST", f"{space_path}/retention", _retention(retention_s))


def topic_path(topic: str) -> str:
    """Where the API has a topic (`persistent://tenant/namespace/name`)."""
    scheme, _, rest = topic.partition("://")
    return f"/admin/v2/{scheme}/" + "/".join(quote(part, safe="") for part in rest.split("/"))


def _retention(seconds: float | None) -> dict[str, int]:
    minutes = -1 if seconds is None else math.ceil(seconds / 60)
    return {"retentionTimeInMinutes": minutes, "retentionSizeInMB": -1}


def _checked(admin_url: str, method: str, path: str, body: object = None) -> bytes:
    status, answer = request(admin_url, method, path, body)
    if status >= http.client.BAD_REQUEST and status != _CONFLICT:
        raise _refusal(admin_url, method, path, status, answer)
    return answer


def _refusal(admin_url: str, method: str, path: str, status: int, answer: bytes) -> BusError:
    text = answer.decode(errors="replace").strip()
    return BusError(f"{admin_url}: {method} {path}: {status} {text[:200]}")
