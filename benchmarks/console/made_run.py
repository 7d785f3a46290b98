"""A run directory made of nothing: steps that learn, samples, logs, and as many recorded episodes as are asked for."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protocol.config import Settings

BEGAN = 1_790_000_000.0
GROUP = 8
_WORDS = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text().split()


def make_run(directory: Path, num_episodes: int, *, num_steps: int = 60, seed: int = 0, is_over: bool = True) -> Path:
    """Write a run of `num_steps` optimizer steps and its files."""
    rng = random.Random(seed)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    (directory / "trajectories").mkdir(exist_ok=True)
    settings = Settings(steps=num_steps, num_actors=64, run_dir=directory, max_staleness=4)
    (directory / "settings.json").write_text(settings.model_dump_json(indent=2))
    _write_metrics(directory / "metrics.jsonl", num_steps, rng)
    for name in ("replay-buffer", "learner-0", "generator-0", "sandbox-actor-0"):
        (directory / "logs" / f"{name}.log").write_text(f"2026-11-25 12:00:00,000 INFO {name}: ready\n")
    (directory / "fleet.json").write_text(json.dumps({"at": BEGAN + 30 * num_steps, "processes": _fleet()}))
    (directory / "versions.json").write_text(json.dumps({"python": "3.11.2", "torch": "2.13.0+cpu", "vllm": "0.32.0"}))
    episodes = _episodes(num_episodes, num_steps, rng)
    with (directory / "trajectories" / "sandbox-actor-0.jsonl").open("w") as file:
        file.writelines(json.dumps(episode) + "\n" for episode in episodes)
    if is_over:
        figures = {"steps": num_steps, "seconds": 1860.0, "episodes": 8 * num_steps * 16, "episodes_failed": 3}
        figures |= {"reward_first": 0.14, "reward_last": 0.71, "learner_wait_share": 0.41, "episodes_per_s": 4.1}
        (directory / "summary.json").write_text(json.dumps(figures))
        (directory / "audit.json").write_text(json.dumps(_audit(8 * num_steps * 16)))
    return directory


def _fleet() -> list[dict[str, Any]]:
    host = {"host": "host0/abcdef", "since": BEGAN + 20, "restarts": 0}
    working = {"state": "working"} | host
    return [
        {"name": "replay-buffer", "doing": "waits for episodes", "detail": "64 episodes leased", "memory_bytes": 3.1e8}
        | working,
        {"name": "learner-0", "doing": "waits for a batch", "detail": "version 19", "memory_bytes": 2.9e9} | working,
        {"name": "generator-0", "doing": "generates", "detail": "51 requests", "memory_bytes": 4.4e9}
        | working
        | {"restarts": 2},
        {"name": "sandbox-actor-0", "doing": "runs episodes", "detail": "51 generating", "memory_bytes": 4.2e8}
        | working,
    ]


def _audit(num_episodes: int) -> dict[str, Any]:
    episodes: dict[str, Any] = {
        "leased": num_episodes + 3,
        "finished": num_episodes,
        "trained": num_episodes // 2,
        "run_again": 3,
    }
    episodes |= {"failed_by_kind": {"sandbox.start": 3}, "not_held_against_tasks": 2, "filtered": {}, "ended_by": {}}
    return {
        "episodes": episodes,
        "fake_zeros": 0,
        "zeros_by_reason": {"tests": num_episodes // 3, "turn_limit": 12},
        "tampered": 1,
        "second_opinions": 40,
        "second_opinion_disagreements": 0,
        "tasks": 64,
        "tasks_set_aside": {"owner1__project1-1": "no image"},
        "tasks_not_trained": {},
        "by_length": [{"tokens_up_to": 4096, "finished": num_episodes, "ended_by_a_limit": 12, "trained": 9}],
    }


def _write_metrics(path: Path, num_steps: int, rng: random.Random) -> None:
    with path.open("w") as file:
        for second in range(num_steps * 30):
            number, at = second // 30, BEGAN + second
            if second % 30 == 29:
                file.write(json.dumps({"kind": "step", "time": at} | _step(number + 1, num_steps, rng)) + "\n")
            file.write(json.dumps({"kind": "system", "time": at, "step": number} | _system(second, rng)) + "\n")


def _step(number: int, num_steps: int, rng: random.Random) -> dict[str, float]:
    done = number / num_steps
    reward = min(0.12 + 0.65 * (1 - math.exp(-3 * done)) + rng.gauss(0, 0.02), 1.0)
    return {
        "step": number,
        "loss_mean": rng.gauss(-0.02, 0.05),
        "entropy_mean": 0.9 * math.exp(-2.4 * done) + rng.gauss(0, 0.01),
        "mismatch_abs_mean": 0.006 + 0.002 * rng.random(),
        "fresh_mismatch_abs_mean": 0.0012 + 0.0004 * rng.random(),
        "clipped_low_share": 0.01 * rng.random(),
        "clipped_high_share": 0.02 * rng.random(),
        "effective_sample_share": 0.97 + 0.02 * rng.random(),
        "gradient_norm": abs(rng.gauss(0.6, 0.2)),
        "tokens": 41_000.0,
        "tokens_per_s": 5200 + 500 * rng.random(),
        "reward_mean": reward,
        "resolved_share": max(reward - 0.01, 0),
        "turns_mean": 9 - 3 * done + rng.gauss(0, 0.2),
        "trajectory_tokens_mean": 2600 - 500 * done + rng.gauss(0, 60),
        "staleness_mean": 0.8 + 0.2 * rng.random(),
        "staleness_max": float(rng.choice((2, 2, 3))),
        "wait_s": 12 + 2 * rng.random(),
        "train_s": 15 + rng.random(),
        "publish_s": 0.6 + 0.1 * rng.random(),
        "step_s": 17 + rng.random(),
    }


def _system(second: int, rng: random.Random) -> dict[str, float]:
    return {
        "replay.running": 64.0,
        "replay.running_limit": 64.0,
        "replay.open_groups": 9.0,
        "replay.accepted": 4.1 * second,
        "replay.ready_trajectories": 40.0,
        "replay.filtered.no_signal": 1.2 * second,
        "replay.trained_version": second // 30,
        "replay.pass_rate": min(0.12 + second / 3000, 0.7),
        "replay.buffer_fill": 0.4,
        "generator.tok_s": 2100 + rng.gauss(0, 80),
        "generator.kv_used_share": min(0.8 + 0.1 * rng.random(), 1.0),
        "generator.wait_share": 0.08,
        "generator.prefix_hit_share": 0.71,
        "actors.episodes_generating": float(40 + rng.randrange(9)),
        "actors.episodes_executing": float(6 + rng.randrange(6)),
        "actors.episodes_grading": float(rng.randrange(5)),
        "actors.episodes_starting": float(rng.randrange(3)),
        "actors.episodes_failed": float(second // 600),
        "actors.episodes_finished": 4.1 * second,
        "actors.host_memory_share": 0.42 + second / 60_000,
        "actors.host_cpu_share": 0.9,
    }


def _episodes(count: int, num_steps: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    for number in range(count):
        done = number / max(count, 1)
        yield made_episode(number, int(done * num_steps), 0.1 + 0.65 * done, rng)


def made_episode(number: int, version: int, chance: float, rng: random.Random) -> dict[str, Any]:
    """One episode of a few turns on one of 400 tasks of 12 repositories."""
    task = rng.randrange(400)
    resolved = rng.random() < chance
    file = f"src/{rng.choice(_WORDS).strip('*`.,:()').replace('/', '_') or 'module'}.py"
    messages: list[dict[str, Any]] = [{"role": "user", "content": f"Issue {task}: {_text(rng, 40)}"}]
    place = 80
    for command, answer in (
        (f"open {file}", f"[{file}, lines 1 to 40 of 120]\n{_text(rng, 60)}"),
        ("python -m pytest -q", f"\x1b[31mFAILED\x1b[0m test_{task}.py::test_{number % 97} - {_text(rng, 20)}"),
        (f"replace {file} 'a - b' 'a + b'", f"[{file}: 1 line replaced]"),
        ("submit", ""),
    ):
        text = f"{_text(rng, 15)}\n```command\n{command}\n```"
        messages.append(
            {
                "role": "assistant",
                "content": text,
                "tokens": [place, place + 60],
                "versions": [version, version],
                "format_error": False,
                "generate_s": round(rng.uniform(0.5, 4), 3),
            }
        )
        messages.append({"role": "tool", "content": answer, "execute_s": round(rng.uniform(0, 1), 3)})
        place += 200
    began = BEGAN + version * 30 + rng.random() * 30
    return {
        "episode_id": f"g{number // GROUP}/{number % GROUP}",
        "attempt": 1,
        "task_id": f"owner{task % 12}__project{task % 12}-{task}",
        "group_id": f"g{number // GROUP}",
        "member": number % GROUP,
        "resolved": resolved,
        "reward": float(resolved),
        "end_reason": rng.choice(("submitted", "submitted", "submitted", "max_turns", "context")),
        "tampered": False,
        "num_turns": 4,
        "num_tokens": place + rng.randrange(3000),
        "num_branches": 1,
        "drift": {},
        "mean_logprob": -rng.random(),
        "started_at": round(began, 3),
        "finished_at": round(began + rng.uniform(3, 90), 3),
        "messages": messages,
        "patch": f"diff --git a/{file} b/{file}\n--- a/{file}\n+++ b/{file}\n@@ -1,3 +1,3 @@\n def add(a, b):\n"
        "-    return a - b\n+    return a + b\n",
        "verdict": {
            "reason": "all named tests passed" if resolved else "1 of 2 named tests failed",
            "passed": [f"test_{task}.py::test_old"] + [f"test_{task}.py::test_new"] * resolved,
            "failed": [] if resolved else [f"test_{task}.py::test_new"],
            "ignored": [],
            "log": f"1 passed, {int(not resolved)} failed in 0.1s",
        },
    }


def _text(rng: random.Random, num_words: int) -> str:
    return " ".join(rng.choices(_WORDS, k=num_words))
