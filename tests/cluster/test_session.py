"""What a run says at its end, and its exit status."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from cluster import session
from cluster.supervision.part import LifeLost
from learner.checkpoints.wrapper import is_text_part
from protocol.config import Settings
from protocol.messages import TaskRef
from tiny.wrappers import save_random_wrapper


@pytest.mark.parametrize("num_scored", [0, 1])
def test_an_evaluation_without_any_score_is_no_success(
    num_scored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [TaskRef(task_id=f"t{number}", source="made", repository="r") for number in range(2)]
    records = [
        {
            "episode_id": f"g{number}/0",
            "task_id": f"t{number}",
            "member": 0,
            "resolved": True,
            "num_turns": 2,
            "num_tokens": 10,
            "end_reason": "submitted",
            "mean_logprob": -1.0,
        }
        for number in range(num_scored)
    ]
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    async def live(settings: Settings, stop: object) -> session.Life:
        return session.Life(tmp_path, [], {}, tasks, None, None)

    monkeypatch.setattr(session, "_live", live)
    settings = Settings.model_validate({"phase": "eval", "eval": {"runs": 1}})
    assert asyncio.run(session.run(settings)) == (0 if num_scored else 1)
    assert f"{num_scored} of 2 attempts scored" in (tmp_path / "evaluation.md").read_text()
    assert ("not one attempt of the evaluation has a score" in capsys.readouterr().err) == (not num_scored)


@pytest.mark.parametrize(
    ("began_with", "checkpoint", "then"), [(None, True, "auto"), (None, False, "auto"), ("other", False, "other")]
)
def test_a_life_that_was_lost_is_followed_by_another_from_the_newest_checkpoint(
    began_with: str | None, checkpoint: bool, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_with, then = (str(tmp_path / name) if name == "other" else name for name in (began_with, then))
    seen: list[str | None] = []

    async def live(settings: Settings, stop: object) -> session.Life:
        seen.append(settings.resume)
        if len(seen) > 1:
            return session.Life(tmp_path, [], {}, [], None, None)
        if checkpoint:
            (tmp_path / "checkpoints" / "step-3").mkdir(parents=True)
            (tmp_path / "checkpoints" / "step-3" / "checkpoint.json").touch()
        return session.Life(tmp_path, [], {}, [], None, LifeLost("Ray's raylet died", kind="ray"))

    monkeypatch.setattr(session, "_live", live)
    assert asyncio.run(session.run(Settings(resume=began_with))) == 0
    assert seen == [began_with, then]


def test_lives_have_a_budget_by_the_hour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    async def live(settings: Settings, stop: object) -> session.Life:
        seen.append(settings.resume)
        return session.Life(tmp_path, [], {}, [], None, LifeLost("Ray's raylet died", kind="ray"))

    monkeypatch.setattr(session, "_live", live)
    assert asyncio.run(session.run(Settings(restarts_per_hour=2))) == 1
    assert len(seen) == 3


def test_a_wrapper_is_run_by_its_text_part_and_an_endpoint_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrapper, seen = save_random_wrapper(tmp_path / "wrapper", "llava"), []

    async def live(settings: Settings, stop: object) -> session.Life:
        seen.append(Path(settings.model.path))
        return session.Life(tmp_path, [], {}, [], None, None)

    monkeypatch.setattr(session, "_live", live)
    model, tasks = {"path": str(wrapper)}, {"cache_dir": str(tmp_path / "cache")}
    assert asyncio.run(session.run(Settings.model_validate({"model": model, "tasks": tasks}))) == 0
    (part,) = seen
    assert is_text_part(part) and part.parent == tmp_path / "cache" / "text-parts"
    assert f"{wrapper} wraps a language model: this run has its text part, {part}" in capsys.readouterr().err
    asked = {"endpoint": "http://127.0.0.1:1/v1", "model": "m"}
    content = {"model": model, "tasks": tasks, "phase": "eval", "eval": asked}
    asyncio.run(session.run(Settings.model_validate(content)))
    assert seen[1] == wrapper
