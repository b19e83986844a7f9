"""Shedding of intents before anybody looks at what is in them."""

from __future__ import annotations

from typing import Any

import grpc

from goalstate.dpm.engine import Engine
from goalstate.dpm.errors import Overloaded
from goalstate.dpm.service import SERVICE

_APPLY = f"/{SERVICE}/Apply"


class ShedEarly(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Looks at the load before a request is parsed: shedding is to cost little."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = await continuation(details)
        if details.method != _APPLY:
            return handler

        def deserialize(data: bytes) -> Any:
            try:
                self._engine.check_load(len(data))
            except Overloaded as error:
                return error  # of an intent that is not even looked at, see `Apply`
            return handler.request_deserializer(data)

        return handler._replace(request_deserializer=deserialize)
