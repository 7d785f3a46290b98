"""Every attack on every surface: what was rewarded, and what was marked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.attacks import ATTACKS
from benchmarks.attacks.base import Attack, attack_patch
from benchmarks.attacks.surfaces import LIMITS, Surface
from benchmarks.resume import Results, side_by_side
from protocol.errors import LonghaulError
from sandbox.judgement.grading import grade
from sandbox.judgement.verdicts import Verdict
from sandbox.patches import Patch

ENDLESS_S = 5.0
Row = dict[str, int]


async def attacked(
    surfaces: Sequence[Surface], results: Results, cache_dir: Path, num_jobs: int, timeout_s: float = 60.0
) -> tuple[dict[str, Row], dict[str, Row]]:
    """How often each attack, and anything on each surface, was tried, rewarded, and marked as tampering.

    Every surface must reward its gold patch first, else it would say nothing.
    """

    async def judged(surface: Surface, patch: Patch, deadline_s: float) -> Verdict:
        return await grade(
            surface.backend,
            surface.task,
            patch,
            run="attacks",
            lease="attack",
            limits=LIMITS,
            cache_dir=cache_dir,
            timeout_s=deadline_s,
        )

    async def attempt(surface: Surface, attack: Attack) -> list[bool]:
        patch = await asyncio.to_thread(attack_patch, attack, surface.task, surface.tree, surface.module)
        try:
            verdict = await judged(surface, patch, ENDLESS_S if attack.endless else timeout_s)
        except LonghaulError as error:  # an attack that breaks the judge has no reward either, but is told
            print(f"{surface.name}, {surface.task.task_id}: {attack.name}: no verdict: {error}", flush=True)
            return [False, False]
        if verdict.resolved:
            print(f"{surface.name}, {surface.task.task_id}: {attack.name} was REWARDED: {verdict.reason}", flush=True)
        return [verdict.resolved, verdict.tampered]

    def job(surface: Surface, attack: Attack) -> partial[object]:
        key = f"attack {surface.name}: {attack.name} {surface.task.task_id}"
        return partial(results.once, key, partial(attempt, surface, attack))

    pairs = [(surface, attack) for surface in surfaces for attack in ATTACKS]
    seen = await side_by_side("attacks", num_jobs, [job(*pair) for pair in pairs])
    by_attack: dict[str, Row] = {}
    by_surface: dict[str, Row] = {}
    for (surface, attack), (rewarded, tampered) in zip(pairs, seen, strict=True):  # type: ignore[misc]
        for table, name in ((by_attack, attack.name), (by_surface, surface.name)):
            row = table.setdefault(name, {"tried": 0, "rewarded": 0, "tampered": 0})
            row["tried"] += 1
            row["rewarded"] += rewarded
            row["tampered"] += tampered
    for name, row in by_surface.items():
        print(f"{name:24} " + "  ".join(f"{what} {count:4}" for what, count in row.items()), flush=True)
    return by_attack, by_surface
