"""How fast weights go from host to host over the run's encrypted sockets, beside what a bare TCP socket carries."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.hosts.network import Host
from benchmarks.hosts.run import OURS

_WAIT_S = 300.0
_PUBLISH = """
import json, sys, time, torch
from learner.publishing.publisher import WeightPublisher
from protocol.config import WeightSettings
from protocol.sockets import Keys
address, num_floats, num_pushes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
keys = Keys.generate()
publisher = WeightPublisher(WeightSettings(delta=False), f"tcp://{address}:*", "bench", keys)
weights = torch.rand(num_floats)
print(json.dumps([publisher.endpoint, keys.public, keys.secret]), flush=True)
seconds = []
for version in range(num_pushes):
    began = time.perf_counter()
    publisher.publish(version, [("w", weights)])
    publisher.wait_adopted(version, 200)
    seconds.append(time.perf_counter() - began)
print(json.dumps(seconds), flush=True)
publisher.close()
"""
_ADOPT = """
import asyncio, contextlib, json, sys
from actors.weights.adopter import WeightAdopter
from actors.weights.memory import MemoryWeights
from protocol.config import WeightSettings
from protocol.errors import DeadlineError
from protocol.sockets import Keys
from protocol.weights.manifest import TensorSpec
endpoint, public, secret = json.loads(sys.argv[1])
num_floats, num_pushes = int(sys.argv[2]), int(sys.argv[3])
holder = MemoryWeights([TensorSpec("w", "float32", (num_floats,))])
keys = Keys(public=public, secret=secret)
adopter = WeightAdopter(holder, "g0", endpoint, WeightSettings(), tied={}, keys=keys)
async def adopt():
    last_polls = 2  # which tell the publisher
    while last_polls:
        last_polls -= adopter.version == num_pushes - 1
        with contextlib.suppress(DeadlineError):  # the publisher may be gone, or without a processor for a while
            await adopter.poll()
    await adopter.close()
asyncio.run(adopt())
"""
_SEND = """
import socket, sys, time
server = socket.create_server((sys.argv[1], 7020))
print("up", flush=True)
peer, _ = server.accept()
block, left = bytes(4 << 20), int(sys.argv[2])
began = time.perf_counter()
while left > 0:
    peer.sendall(block)
    left -= len(block)
peer.shutdown(socket.SHUT_WR)
peer.recv(1)  # it has all of it
print(time.perf_counter() - began, flush=True)
"""
_TAKE = """
import socket, sys
with socket.create_connection((sys.argv[1], 7020)) as peer:
    room = bytearray(4 << 20)
    while peer.recv_into(room):
        pass
"""


def weights_gb_s(here: Host, there: Host, num_bytes: int, num_pushes: int) -> float:
    """From `publish` on `here` until `there` has proved the version: all bytes each time, the middle of the pushes but
    the first, which makes the memory."""
    sizes = [str(num_bytes // 4), str(num_pushes + 1)]
    publishing = _started(here, _PUBLISH, here.address, *sizes)
    try:
        assert publishing.stdout is not None
        told = publishing.stdout.readline()
        there.run(sys.executable, "-c", _ADOPT, told, *sizes, env=os.environ | OURS, timeout_s=_WAIT_S)
        seconds = json.loads(publishing.communicate(timeout=_WAIT_S)[0])
    finally:
        _end(publishing)
    return num_bytes / statistics.median(seconds[1:]) / 1e9


def tcp_gb_s(here: Host, there: Host, num_bytes: int) -> float:
    """One stream in clear text between two Python processes."""
    sending = _started(here, _SEND, here.address, str(num_bytes))
    try:
        assert sending.stdout is not None
        assert sending.stdout.readline() == "up\n"
        there.run(sys.executable, "-c", _TAKE, here.address, timeout_s=_WAIT_S)
        return num_bytes / float(sending.communicate(timeout=_WAIT_S)[0]) / 1e9
    finally:
        _end(sending)


def _started(host: Host, program: str, *words: str) -> Any:
    own: dict[str, Any] = {"env": os.environ | OURS, "stdout": subprocess.PIPE, "cwd": Path("/")}
    return host.start(sys.executable, "-c", program, *words, **own)


def _end(process: Any) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()
