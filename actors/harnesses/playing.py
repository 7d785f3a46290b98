"""One episode of an agent in a sandbox: its way to the gateway, its files, its process, and the end of all three."""

from __future__ import annotations

import asyncio

from msgspec import Struct

from actors.gateway.seat import Seat
from actors.gateway.server import Gateway
from actors.harnesses.harness import ASKED, HOME, ISSUE, Harness, Launch, Visit
from protocol.errors import AgentError
from sandbox.base import Command, ExecResult, Sandbox

SET_UP_S = 20.0
SLACK_S = 60.0  # past the wall-time limit, which the seat holds: then the sandbox itself ends the command
MOST_SAID = 1000
MOST_ARGUMENT = 100_000  # bytes; Linux takes no argument of more than 128 KiB


class Telling(Struct, frozen=True, kw_only=True):
    """What every agent of a run is told."""

    model: str
    grace_s: float


async def play(
    harness: Harness, sandbox: Sandbox, gateway: Gateway, seat: Seat, key: str, issue: str, telling: Telling
) -> None:
    """Run the agent until it ends by itself or a limit has ended the episode; nothing of it is left running. One that
    runs already, started by an earlier process, goes on: its requests are answered here from now on.

    Raises `SandboxError` when the sandbox fails and `AgentError` when the agent never asked for a turn.
    """
    port = await sandbox.listen(gateway.accept(key))
    visit = Visit(
        issue=issue,
        url=f"http://127.0.0.1:{port}",
        key=key,
        model=telling.model,
        workdir=sandbox.spec.workdir,
        max_context=seat.turns.terms.max_context,
    )
    timeout = max(seat.turns.time_left_s, 0.0) + telling.grace_s + SLACK_S
    running = asyncio.create_task(_run(sandbox, harness.launch(visit), issue, timeout), name=harness.name)
    over = asyncio.create_task(seat.turns.over.wait(), name="the episode's end")
    try:
        await asyncio.wait({running, over}, timeout=seat.turns.time_left_s, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            if not over.done():
                seat.turns.end("wall_time")
            await asyncio.wait({running}, timeout=telling.grace_s)
        ended = running.result() if running.done() else None
    finally:
        running.cancel()
        over.cancel()
        await asyncio.gather(running, over, return_exceptions=True)
    if ended is not None and ended.timed_out:  # its own deadline, in which every restart of this process counts
        seat.turns.end("wall_time")
    await sandbox.kill_all()
    if not seat.turns.done and seat.fault is None and seat.turns.ended is None:
        raise _no_turn(harness.name, ended)


async def _run(sandbox: Sandbox, launch: Launch, issue: str, timeout: float) -> ExecResult:
    """The agent from its start, or from where it is, to its end."""
    ended = await sandbox.rejoin(timeout)
    if ended is not None:
        return ended
    await sandbox.exec(["mkdir", "-p", HOME], timeout=SET_UP_S)
    for path, content in ({ISSUE: told(issue), ASKED: asked(issue)} | launch.files).items():
        await sandbox.write(path, content.encode(errors="replace"))
    return await sandbox.run(Command(argv=launch.argv, timeout=timeout, env=launch.env, lasts=True))


def told(issue: str) -> str:
    """The issue as agents find it. Most take it as an argument, where a dash begins an option and a slash a command of
    theirs: then it begins with an empty line."""
    return f"\n{issue}" if issue.startswith(("-", "/")) else issue


def asked(issue: str) -> str:
    """What an agent that takes its task as an argument is asked: the issue, or where it finds one that is too long."""
    argument = told(issue)
    if len(argument.encode(errors="replace")) <= MOST_ARGUMENT:
        return argument
    return f"Your task is in the file {ISSUE}, which is long. Read all of it, then do what it says."


def _no_turn(name: str, ended: ExecResult | None) -> AgentError:
    """An agent that never asked was not started rightly: nothing is to be learned from it."""
    if ended is None:
        return AgentError(f"{name} did not ask for a single turn", kind="no_turn")
    said = ended.text.strip()[-MOST_SAID:] or "nothing"
    return AgentError(
        f"{name} ended with status {ended.exit_code} and without a single turn; it said: {said}", kind="no_turn"
    )
