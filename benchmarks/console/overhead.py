"""What a run pays for being recorded, indexed, served and looked at: the same run with all that and without."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.console.accounts import Sizes, account

_ROOT = Path(__file__).parents[2]
_DEADLINE_S = 420.0
_LOOKS_EVERY_S = 2.0  # as an open page does
_FIRST_STEP = 3  # before it processes warm up
_TURNS = 4
_BATCH, _GROUP, _SHARE = 16, 4, 0.1
_RUN = {
    "--num-actors": 32,
    "--replay.batch": _BATCH,
    "--replay.group-size": _GROUP,
    "--actors.trajectory-log-share": _SHARE,
    "--tasks.count": 32,
    "--learner.lr": 0,  # the policy stays, and with it what an episode costs
    "--network.dashboard-port": 0,
    "--sandbox.backend": "namespace",
}
_WITHOUT = {"--actors.trajectory-log-share": 0}


class Measured(NamedTuple):
    """One run between two of its steps."""

    tokens_per_s: float  # generated
    cpu_ms_per_token: float  # of all processes of the run, those that serve included
    console_ms_per_token: float  # of the process that indexes and serves
    tokens_of_episode: float
    tokens_of_step: float
    length: float  # of an episode, in tokens of all kinds


class Overhead(NamedTuple):
    """Shares that the run loses; of medians over the rounds."""

    share: float  # of generated tokens a second
    cpu_share: float  # more processor time for a token
    own_share: float  # of the processor time of a run: that of what indexes and serves, and of writing records
    rounds: list[tuple[Measured, Measured]]  # with, without


def measure(directory: Path, rounds: int, steps: int) -> Overhead:
    """Runs in turn; the directory of the last one that was recorded is `directory / "with"`."""
    found = []
    for number in range(rounds):
        order = (True, False) if number % 2 else (False, True)  # neither is always first
        pair = {is_with: _run(directory / ("with" if is_with else "without"), steps, is_with) for is_with in order}
        found.append((pair[True], pair[False]))
        print(f"round {number + 1} of {rounds}: with {pair[True]}, without {pair[False]}", file=sys.stderr, flush=True)
    fast, bare = (statistics.median(run[side].tokens_per_s for run in found) for side in (0, 1))
    cpu, bare_cpu = (statistics.median(run[side].cpu_ms_per_token for run in found) for side in (0, 1))
    return Overhead(1 - fast / bare, cpu / bare_cpu - 1, _own_share(directory, [run[0] for run in found]), found)


def _own_share(directory: Path, runs: list[Measured]) -> float:
    run = sorted(runs, key=lambda one: one.console_ms_per_token)[len(runs) // 2]
    sizes = Sizes(round(run.length), _TURNS, _BATCH, _GROUP, _SHARE)
    episode_ms, step_ms = account(directory / "accounted", sizes)
    own = run.console_ms_per_token + episode_ms / run.tokens_of_episode + step_ms / run.tokens_of_step
    return own / run.cpu_ms_per_token


def _run(directory: Path, steps: int, is_with: bool) -> Measured:
    shutil.rmtree(directory, ignore_errors=True)
    flags = _RUN | ({} if is_with else _WITHOUT) | {"--run-dir": directory, "--steps": steps}
    command = [sys.executable, "launch.py", *(str(word) for pair in flags.items() for word in pair)]
    command += [] if is_with else ["--no-console.serve"]
    launcher = subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, text=True)
    try:
        with _reader(launcher) as said:
            return _between_steps(launcher, directory / "metrics.jsonl", steps, said if is_with else None)
    finally:
        launcher.terminate()
        launcher.wait(timeout=120)


def _between_steps(launcher: subprocess.Popen[str], log: Path, steps: int, said: list[str] | None) -> Measured:
    """Waits for the run's end."""
    marks: list[_Mark] = []
    until = time.monotonic() + _DEADLINE_S
    looked_at = 0.0
    used, console = 0.0, 0.0
    while launcher.poll() is None:
        if time.monotonic() > until:
            raise SystemExit(f"the run did not end within {_DEADLINE_S:.0f} s")
        if said is not None and time.monotonic() - looked_at > _LOOKS_EVERY_S:
            looked_at = time.monotonic()
            _look(said)
        sample = _newest(log)
        # At the end processes go, and their time with them.
        if _FIRST_STEP <= sample.step < steps and (not marks or marks[-1].sample.tokens != sample.tokens):
            now, now_console = _cpu_s(launcher.pid)
            used, console = max(used, now), max(console, now_console)
            marks.append(_Mark(sample, used, console))
        time.sleep(0.5)
    if launcher.returncode != 0 or len(marks) < 2:
        raise SystemExit(f"the run failed with status {launcher.returncode}, or was too short to be measured")
    first, last = marks[0], marks[-1]
    tokens = last.sample.tokens - first.sample.tokens
    episodes = max(last.sample.episodes - first.sample.episodes, 1)
    return Measured(
        tokens_per_s=tokens / (last.sample.time - first.sample.time),
        cpu_ms_per_token=1000 * (last.cpu_s - first.cpu_s) / tokens,
        console_ms_per_token=1000 * (last.console_s - first.console_s) / tokens,
        tokens_of_episode=tokens / episodes,
        tokens_of_step=tokens / max(last.sample.step - first.sample.step, 1),
        length=(last.sample.all_tokens - first.sample.all_tokens) / episodes,
    )


class _Sample(NamedTuple):
    """A line of the run's metrics."""

    step: int = 0
    time: float = 0.0
    tokens: float = 0.0  # generated
    episodes: float = 0.0  # finished
    all_tokens: float = 0.0  # of those, prompts and what tools answered counted in


class _Mark(NamedTuple):
    """Processor seconds until a sample."""

    sample: _Sample
    cpu_s: float
    console_s: float


def _newest(log: Path) -> _Sample:
    """The last one."""
    with contextlib.suppress(OSError, ValueError, KeyError), log.open("rb") as file:
        file.seek(max(log.stat().st_size - 65536, 0))
        for line in reversed(file.read().split(b"\n")[:-1]):
            if line.startswith(b'{"kind": "system"'):
                said: dict[str, Any] = json.loads(line)
                return _Sample(
                    int(said["step"]),
                    float(said["time"]),
                    float(said["generator.generated_tokens"]),
                    float(said["replay.accepted"]),
                    float(said["replay.accepted_tokens"]),
                )
    return _Sample()


def _cpu_s(pid: int) -> tuple[float, float]:
    """Of a process and all below it, with those of theirs that have ended; of the console among them."""
    total, console = 0.0, 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        for process in [root, *root.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                used = sum(process.cpu_times()[:4])
                total += used
                console += used if process.cmdline()[1:3] == ["-m", "console"] else 0.0
    return total, console


def _look(said: list[str]) -> None:
    """The Overview, as somebody's open page asks for it."""
    if address := re.search(r"console (http://\S+)", "".join(said)):
        with contextlib.suppress(OSError), urllib.request.urlopen(address[1], timeout=10) as answer:
            answer.read()


@contextlib.contextmanager
def _reader(launcher: subprocess.Popen[str]) -> Iterator[list[str]]:
    """What it prints, as it comes."""
    said: list[str] = []
    assert launcher.stdout is not None
    stdout = launcher.stdout

    def read() -> None:
        for line in stdout:
            said.append(line)

    thread = threading.Thread(target=read, name="what the run says", daemon=True)
    thread.start()
    yield said
    thread.join(timeout=30)
