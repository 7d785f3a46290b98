"""The replay buffer's counters and gauges, by metric name."""

from __future__ import annotations

from learner.replay.machine import Replay


def measure(replay: Replay) -> dict[str, float]:
    """What there is to know about a buffer now. Counts are over the whole run, restarts included."""
    state, tally = replay.state, replay.state.tally
    ready = [item for items in state.ready.values() for item in items]
    groups = [group for group in state.open.values() if group.is_trained]
    waiting = [member for group in groups for member in group.members if member.finished]
    seen = list(state.rates.values())
    metrics = {
        "running": replay.num_running,
        "running_limit": replay.concurrency.limit,
        "collected": len(waiting) + sum(len(item.finished) for item in ready),
        "open_groups": len(groups),
        "ready_groups": len(ready),
        "ready_trajectories": sum(len(item.finished) for item in ready),
        "buffer_fill": min(sum(item.places for item in ready) / replay.settings.replay.batch, 1.0),
        "version": state.served,
        "trained_version": state.learner,
        "batches_formed": state.last_batch,
        "staleness": max((state.learner - version for version in state.ready), default=0),
        "leased": tally.leased,
        "accepted": tally.accepted,
        "failed": tally.failed,
        "expired": tally.expired,
        "trained": tally.trained,
        "groups_opened": tally.groups_opened,
        "groups_closed": tally.groups_closed,
        "groups_short": tally.groups_short,
        "accepted_tokens": tally.accepted_tokens,
        "reward_mean": tally.accepted_reward / max(tally.accepted, 1),
        "pass_rate": tally.accepted_resolved / max(tally.accepted, 1),
        "tasks_seen": len(seen),
        "tasks_never_solved": sum(not rate.num_resolved for rate in seen),
        "tasks_always_solved": sum(rate.num_resolved == rate.num_runs for rate in seen),
        "tasks_dropped": len(state.dropped),
        "tasks_set_aside": len(state.set_aside),
        "attempts_excused": state.audit.excused,
        "fake_zeros": state.audit.fake_zeros,
        "outage": float(replay.outage is not None),
    }
    if replay.ledger.held_out:
        metrics |= {
            "held_out_running": len(replay.ledger.scoring),
            "held_out_finished": state.held_out.finished,
            "held_out_failed": state.held_out.failed,
        }
    metrics |= _by_source(replay)
    metrics |= {f"filtered.{name}": count for name, count in tally.filtered.items()}
    metrics |= {f"ended.{kind}": count for kind, count in tally.ended.items()}
    metrics |= {f"pressure.{name}": level for name, level in replay.concurrency.levels.items()}
    metrics |= state.survivorship.metrics()
    return {name: float(value) for name, value in metrics.items()}


def _by_source(replay: Replay) -> dict[str, float]:
    """Pass rate and tasks never solved of every source of a mixture."""
    if not replay.settings.tasks.sources:
        return {}
    metrics: dict[str, float] = {}
    for source in replay.settings.tasks.sources:
        seen = [r for task, r in replay.state.rates.items() if _source(replay, task) == source.name and r.num_runs]
        runs = sum(rate.num_runs for rate in seen)
        metrics[f"pass_rate.{source.name}"] = sum(rate.num_resolved for rate in seen) / max(runs, 1)
        metrics[f"tasks_never_solved.{source.name}"] = sum(not rate.num_resolved for rate in seen)
    return metrics


def _source(replay: Replay, task_id: str) -> str:
    task = replay.ledger.tasks.get(task_id)
    return task.source if task else ""
