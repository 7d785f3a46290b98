"""What the buffer can say of a run besides numbers: what is wrong now, and the account of its infrastructure."""

from __future__ import annotations

from msgspec import Struct

from learner.replay.audit import Audit
from learner.replay.machine import Replay


class News(Struct, frozen=True, kw_only=True):
    """What a person should hear of while the run works."""

    outage: str  # empty: something works
    paused: str  # why nothing is leased though it could be: the disk; empty while it is
    given_up: str  # why no more of the run can be had; empty while it goes on
    set_aside: dict[str, str]  # tasks that cannot be run, and why


class Account(Struct, frozen=True, kw_only=True):
    """The whole run, restarts included."""

    tasks: int
    leased: int
    accepted: int
    trained: int
    expired: int
    set_aside: dict[str, str]
    unscored: dict[str, str]  # tasks of which an episode has no trajectory, and why
    not_trained: dict[str, list[str]]  # of a training run: tasks by the reason for which they were never trained on
    filtered: dict[str, int]
    audit: Audit


def news(replay: Replay, now: float) -> News:
    """At `now`, in the buffer's seconds."""
    outage = str(replay.outage or "")
    return News(
        outage=outage, paused=replay.paused, given_up=replay.given_up(now), set_aside=dict(replay.state.set_aside)
    )


def account(replay: Replay) -> Account:
    """Everything so far."""
    state, tally = replay.state, replay.state.tally
    return Account(
        tasks=len(replay.ledger.tasks),
        leased=tally.leased,
        accepted=tally.accepted,
        trained=tally.trained,
        expired=tally.expired,
        set_aside=dict(state.set_aside),
        unscored=state.audit.short | state.set_aside,
        not_trained={} if replay.settings.phase == "eval" else _not_trained(replay),
        filtered=dict(tally.filtered),
        audit=state.audit,
    )


def _not_trained(replay: Replay) -> dict[str, list[str]]:
    state = replay.state
    worked_on = {group.task_id for group in state.open.values()}
    worked_on |= {item.task_id for items in state.ready.values() for item in items}
    dropped = set(state.dropped)
    found: dict[str, list[str]] = {}
    for task in replay.ledger.tasks:
        if task in state.audit.trained_tasks:
            continue
        if task in state.set_aside:
            reason = "set aside"
        elif task in dropped:
            reason = "left out by the stage's rule"
        elif task in worked_on:
            reason = "still worked on at the end"
        elif task in state.audit.finished_tasks:
            reason = "filtered: no signal, or too stale"
        elif task in state.audit.short:
            reason = "no episode finished"
        else:
            reason = "never drawn"
        found.setdefault(reason, []).append(task)
    return found
