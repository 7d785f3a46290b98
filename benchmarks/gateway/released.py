"""The released agents, unmodified: do they finish, is every token accounted for, how soon do they ask."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

from actors.episodes.episode_runner import Attempt
from actors.harnesses.table import RELEASED
from actors.policies.scripted import ScriptedPolicy
from benchmarks.gateway.world import lease_of, open_runner, settings_of, solving, tools_tokenizer
from protocol.errors import ConfigError, LonghaulError

ROOM = {"memory_mib": 4096, "max_processes": 512, "disk_mib": 512, "backend": "namespace"}


async def measure(model_dir: Path, starts: int) -> tuple[dict[str, float | None], dict[str, str], dict[str, object]]:
    """Figures, reasons for those that are missing, and a row an agent."""
    rows: dict[str, object] = {}
    missing: dict[str, str] = {}
    figures: dict[str, float | None] = {"drift_tokens_mini_swe": None, "start_ms_mini_swe": None}
    sampled = trained = finished = 0
    for name in RELEASED:
        try:
            attempts, waits, num_sampled = await _play(model_dir, name, starts if name == "mini-swe-agent" else 1)
        except (ConfigError, LonghaulError) as error:
            rows[name] = str(error)[:300]
            missing[f"agents_finished ({name})"] = str(error)[:300]
            continue
        num_trained = sum(int(attempt.trajectory.loss_mask.sum()) for attempt in attempts)
        solved = all(attempt.trajectory.resolved for attempt in attempts)
        sampled, trained = sampled + num_sampled, trained + num_trained
        finished += solved and num_sampled == num_trained
        drift = {cause: n for attempt in attempts for cause, n in attempt.trajectory.drift.items()}
        rows[name] = {
            "turns": [len(attempt.trajectory.turns) for attempt in attempts],
            "tokens": [len(attempt.trajectory.token_ids) for attempt in attempts],
            "paths": [len(attempt.trajectory.branches.leaves()) for attempt in attempts],
            "sampled": num_sampled,
            "trained": num_trained,
            "drift": drift,
            "solved": solved,
            "start_ms": [round(1000 * wait) for wait in waits],
        }
        if name == "mini-swe-agent":
            figures["drift_tokens_mini_swe"] = float(sum(drift.values()))
            figures["start_ms_mini_swe"] = 1000 * median(waits)
    figures["trained_over_sampled"] = trained / sampled if sampled else None
    figures["agents_finished"] = float(finished)
    return figures, missing, rows


async def _play(model_dir: Path, name: str, episodes: int) -> tuple[list[Attempt], list[float], int]:
    """Episodes one after another, how long each took from its lease to its first answer (s), tokens sampled."""
    tokenizer = tools_tokenizer(model_dir)
    settings = settings_of(
        {"harness": name}, sandbox=ROOM, episode={"max_turns": 12, "max_turn_tokens": 4000, "wall_time_s": 120}
    )
    policy = ScriptedPolicy(tokenizer, solving(name))
    attempts: list[Attempt] = []
    waits: list[float] = []
    asked: list[float] = []
    num_sampled = 0

    def heard(exchange: object) -> None:
        nonlocal num_sampled
        asked.append(time.monotonic())
        answer = getattr(exchange, "answer", None)
        num_sampled += answer.usage.sampled if answer is not None else 0

    async with open_runner(settings, policy, tokenizer, heard) as runner:
        for number in range(episodes):
            asked.clear()
            began = time.monotonic()
            attempts.append(await runner.run(lease_of(number, settings)))
            waits.append(asked[0] - began)
    return attempts, waits, num_sampled
