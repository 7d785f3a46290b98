"""What every process of a run does and since when, in `fleet.json` of the run directory while the run works."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from console.run_data.fleet import FILE
from protocol.metrics import Values


class Seen(NamedTuple):
    """One process as the supervisor sees it.

    Args:
        state: `starting`, `working`, `silent` (it does not answer), `failed` (it may be on its way again) or `ended`.
        status: what it said last of itself.
    """

    name: str
    role: str
    host: str
    state: str
    num_restarts: int
    status: Values


class FleetStates:
    """Remembers when each process came to be in its state, and writes all of them."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE
        self._since: dict[str, tuple[str, float]] = {}

    def write(self, processes: Iterable[Seen], now: float) -> None:
        """`now`: seconds since the epoch. Whole or not at all: a page may be reading. A disk that takes no more costs
        the page, not the run."""
        rows = []
        for process in processes:
            doing, detail = does(process)
            if self._since.get(process.name, ("", 0.0))[0] != doing:
                self._since[process.name] = (doing, now)
            rows.append(
                {
                    "name": process.name,
                    "host": process.host,
                    "state": process.state,
                    "doing": doing,
                    "detail": detail,
                    "since": self._since[process.name][1],
                    "restarts": process.num_restarts,
                    "memory_bytes": process.status.get("resident_bytes", 0.0),
                }
            )
        partial = self._path.with_name(f".{FILE}")
        with contextlib.suppress(OSError):
            partial.write_text(json.dumps({"at": now, "processes": rows}), encoding="utf-8")
            partial.replace(self._path)


def does(process: Seen) -> tuple[str, str]:
    """What it does, in words that stay while it does it, and the figures of now."""
    if process.state != "working":
        return process.state, ""
    return _DOES[process.role](process.status)


def _replay(status: Values) -> tuple[str, str]:
    running = status.get("running", 0.0)
    return (
        "waits for episodes" if running else "leases nothing",
        f"{running:.0f} episodes leased, {status.get('ready_groups', 0.0):.0f} groups ready",
    )


def _learner(status: Values) -> tuple[str, str]:
    waits = status.get("learner_waiting", 0.0)
    return "waits for a batch" if waits else "trains", f"version {status.get('learner_version', 0.0):.0f}"


def _generator(status: Values) -> tuple[str, str]:
    running, waiting = status.get("running", 0.0), status.get("waiting", 0.0)
    kv_used = 100 * status.get("kv_used_share", 0.0)
    detail = f"{running:.0f} requests, {waiting:.0f} waiting, KV cache {kv_used:.0f} % full"
    return "generates" if running + waiting else "has nothing to do", detail


def _actors(status: Values) -> tuple[str, str]:
    running = {name: status.get(f"episodes_{name}", 0.0) for name in _EPISODES}
    detail = ", ".join(f"{count:.0f} {name}" for name, count in running.items() if count)
    return "runs episodes" if detail else "has no episode", detail


_EPISODES = ("queued", "starting", "generating", "executing", "grading", "submitting")
_DOES = {"replay": _replay, "learner": _learner, "generator": _generator, "actors": _actors}
