"""Asks a gRPC server for its health, as the health checks of docker-compose.yml do.

python deploy/health.py HOST:PORT      exit code 0: serving; 1: not, and standard error says why
"""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

#: Seconds to wait for the answer.
PATIENCE = 3.0


def fault(address: str, service: str) -> str:
    """Why the service at an address is not healthy; empty if it is."""
    # The answer of the server itself is wanted, whatever proxy the environment names.
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)
        except grpc.RpcError as error:
            return f"{error.code().name}: {error.details()}"
    if reply.status == health_pb2.HealthCheckResponse.SERVING:
        return ""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def main() -> None:
    match sys.argv[1:]:
        case [address]:
            why = fault(address, "")
        case [address, service]:
            why = fault(address, service)
        case _:
            raise SystemExit("usage: health.py HOST:PORT [SERVICE]")
    if why:
        raise SystemExit(f"{address} is not serving: {why}")


if __name__ == "__main__":
    main()
