"""`goalstate demo`: the whole system at work on this machine, and an independent look at the result.

Broker, publisher and a fleet of hosts run as processes of their own. What the hosts hold at the end
is compared with what the oracle computes from the same intent, by code that shares nothing with
the publisher's derivation. No process outlives the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from goalstate.bus import brokers
from goalstate.cli import comparison, northbound
from goalstate.cli.children import Child
from goalstate.cli.convergence import document, request, waited
from goalstate.cli.errors import CommandError, ExitCode, Undecided
from goalstate.cli.output import Output
from goalstate.gs.pb.goalstate.northbound.v1 import intent_pb2
from goalstate.gs.pb.goalstate.northbound.v1.dataplane_manager_pb2 import WaitReply
from goalstate.scale import generate
