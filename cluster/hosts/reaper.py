"""One process a host that outlives whatever it watches, and leaves nothing of the run there.

It asks the launcher every second whether the run goes on, and clears its host when the launcher says no, or has not
answered for as long as the host's lease lasts (`leases.py`): killed, cut off, or gone with its own host. It is no child
of Ray's, so nothing that ends Ray's processes ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from cluster import run_files
from cluster.cleanup import clear_host
from cluster.hosts.leases import OwnLease
from cluster.run_files import RunFiles
from protocol.config import Settings
from protocol.errors import LonghaulError
from protocol.messages import HostBeat, HostLease
from protocol.sockets import BlockingClient, Keys

_EVERY_S = 1.0
_ANSWER_S = 2.0


class Watch(msgspec.Struct, frozen=True, kw_only=True):
    """What a reaper is told: on its standard input, for it holds the run's secret."""

    host: str
    endpoint: str
    keys: Keys
    lease_s: float
    files: RunFiles
    settings: str  # as JSON
    is_launcher: bool  # the launcher is on that host, and clears it itself at an orderly end


def to_json(watch: Watch) -> bytes:
    """For `begin` and `watch`."""
    return msgspec.json.encode(watch, enc_hook=str)


def from_json(text: bytes | str) -> Watch:
    """What `to_json` was given."""
    return msgspec.json.decode(text, type=Watch, dec_hook=lambda kind, value: kind(value))


def spawn(watch: Watch) -> None:
    """Start one on this host, as nobody's child, and mark the private directory as its own."""
    command = [sys.executable, "-c", _DETACH, str(Path(__file__).parent.parent.parent)]
    started = subprocess.run(
        command, input=to_json(watch), capture_output=True, timeout=60, start_new_session=True, check=False
    )
    if started.returncode:
        raise LonghaulError(f"no reaper on {watch.host}: {started.stderr.decode(errors='replace')}", kind="reaper")


# The caller waits until the child of the child has taken the private directory over, and said so.
_DETACH = """
import os, sys
spec = sys.stdin.buffer.read()
ready, told = os.pipe()
if os.fork():
    os.close(told)
    sys.exit(0 if os.read(ready, 1) else "it ended at once")
os.close(ready)
if os.fork():
    os._exit(0)
os.chdir(sys.argv[1])
sys.path.insert(0, sys.argv[1])
from cluster.hosts import reaper
reaper.begin(spec)
os.write(told, b"1")
os.close(told)
void = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(void, stream)
reaper.watch(spec)
"""


def begin(spec: bytes) -> None:
    """Own the private directory, unless the launcher of this host does."""
    private = from_json(spec).files.private
    if not run_files.has_owner(private):
        run_files.own(private)


def watch(spec: bytes) -> None:
    """Waits for the run to be over: by the launcher's word, or by its silence."""
    told = from_json(spec)
    client = BlockingClient(told.endpoint, told.keys)
    lease = OwnLease(told.lease_s, _now())
    dismissed = False
    while not dismissed and not lease.is_over(_now()):
        asked_at = _now()
        with contextlib.suppress(LonghaulError):
            answer = client.request(HostBeat(host=told.host), _ANSWER_S)
            if not isinstance(answer, HostLease) or not answer.goes_on:
                dismissed = True
            else:
                lease.renewed(asked_at)
                for part in answer.to_end:
                    run_files.end_part(told.files, part)
                time.sleep(_EVERY_S)
    if not (dismissed and told.is_launcher):
        asyncio.run(clear_host(Settings.model_validate_json(told.settings), told.files))
    with contextlib.suppress(LonghaulError):
        client.request(HostBeat(host=told.host, is_clear=True), _ANSWER_S)
    client.close()


def _now() -> float:
    """Seconds that pass while the machine sleeps, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
