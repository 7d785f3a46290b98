"""Episodes on disk: the documented fields, the sampled share, and their reader."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.agent.episode import Step
from actors.episodes.episode_runner import Attempt
from actors.episodes.records import Records, prediction, readable
from actors.episodes.show import main
from protocol.arrays import pack_arrays, unpack_arrays
from protocol.errors import WireError
from protocol.messages import Trajectory, Turn
from sandbox.judgement.grading import Verdict
from sandbox.patches import Patch

DOCUMENT = Path(__file__).parents[3] / "docs/55-reading-trajectories.md"


def attempt(episode_id: str = "g/0", *, resolved: bool = True, text: str = "I look.") -> Attempt:
    turns = [Turn(start=3, end=5, format_error=True, generate_s=0.5), Turn(start=7, end=8)]
    mask = np.array([0, 0, 0, 1, 1, 0, 0, 1], np.uint8)
    trajectory = Trajectory(
        episode_id=episode_id,
        lease_id="l",
        task_id="calc-1",
        group_id="g",
        member=0,
        attempt=0,
        resolved=resolved,
        reward=float(resolved),
        end_reason="submitted",
        turns=turns,
        token_ids=np.arange(8, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.array([0, 0, 0, -1, -2, 0, 0, -3], np.float32),
        versions=np.array([-1, -1, -1, 4, 5, -1, -1, 6], np.int32),
        started_at=1.0,
        finished_at=2.0,
    )
    steps = [
        Step(start=3, end=5, text=text, observation="no command", format_error=True),
        Step(start=7, end=8, text="submit"),
    ]
    return Attempt(
        trajectory=trajectory,
        opening=[{"role": "user", "content": "add is wrong"}],
        steps=steps,
        patch=Patch(diff="diff --git a/x b/x\n"),
        verdict=Verdict(resolved=resolved, reason="all named tests passed", log="x" * 10_000),
    )


def test_a_trajectory_reads_as_a_conversation() -> None:
    record = json.loads(json.dumps(readable(attempt())))
    assert [m["role"] for m in record["messages"]] == ["user", "assistant", "tool", "assistant", "tool"]
    first = record["messages"][1]
    assert first == {
        "role": "assistant",
        "content": "I look.",
        "tokens": [3, 5],
        "versions": [4, 5],
        "format_error": True,
        "generate_s": 0.0,
        "at": 0.0,
    } | {"generate_s": 0.5}
    assert record["mean_logprob"] == -2.0
    assert (record["num_turns"], record["num_tokens"]) == (2, 8)
    assert len(record["verdict"]["log"]) == 4000


def branched() -> Attempt:
    """An agent from outside: a turn, a sub-agent's, then the first conversation goes on."""
    base = attempt()
    trajectory = msgspec.structs.replace(
        base.trajectory,
        turns=[Turn(start=1, end=3), Turn(start=4, end=5), Turn(start=6, end=8)],
        loss_mask=np.array([0, 1, 1, 0, 1, 0, 1, 1], np.uint8),
        segment_starts=np.array([0, 3, 5], np.int32),
        segment_parents=np.array([-1, 0, 2], np.int32),
        drift={"template": 4},
    )
    call = {"type": "function", "function": {"name": "shell", "arguments": {"command": "ls"}}}
    steps = [
        Step(start=1, end=3, text="I look.", given=[{"role": "user", "content": "add is wrong"}]),
        Step(start=4, end=5, text="A title", given=[{"role": "user", "content": "name it"}]),
        Step(start=6, end=8, text="done", given=[{"role": "tool", "content": "ok", "tool_calls": [call]}]),
    ]
    return msgspec.structs.replace(base, trajectory=trajectory, steps=steps, opening=[])


def test_branches_are_recorded_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = readable(branched())
    assert [(m["role"], m.get("after")) for m in record["messages"]] == [
        ("user", None),
        ("assistant", None),
        ("user", -1),
        ("assistant", -1),
        ("tool", 0),
        ("assistant", 0),
    ]
    assert (record["num_branches"], record["drift"]) == (2, {"template": 4})
    records = Records(tmp_path, "actor-0", share=1.0)
    records.write(branched())
    records.close()
    assert main([str(tmp_path), "g/0"]) == 0
    shown = capsys.readouterr().out
    assert "8 tokens, branches: 2, tokens rendered anew: 4 template\n" in shown
    assert "=== branch: goes on from the beginning\n--- user\nname it\n--- assistant\nA title\n" in shown
    assert '=== branch: goes on from turn 1\n--- tool\nok\n[shell {"command": "ls"}]\n--- assistant\ndone\n' in shown


def test_tokens_lie_beside_the_record_that_names_their_place(tmp_path: Path) -> None:
    records = Records(tmp_path, "actor", share=1.0)
    for name in ("g/0", "g/1"):
        records.write(attempt(name))
    records.close()
    packed = (tmp_path / "trajectories" / "actor.tokens").read_bytes()
    for line in (tmp_path / "trajectories" / "actor.jsonl").read_text().splitlines():
        start, size = json.loads(line)["token_records"]
        arrays = unpack_arrays(packed[start : start + size])
        assert arrays["ids"].tolist() == list(range(8))
        assert arrays["versions"].tolist() == [-1, -1, -1, 4, 5, -1, -1, 6]
        assert arrays["mask"].tolist() == [0, 0, 0, 1, 1, 0, 0, 1]
        assert arrays["logprobs"].tolist() == [0, 0, 0, -1, -2, 0, 0, -3]


@given(st.binary(max_size=200))
def test_bytes_that_are_no_arrays_are_refused(content: bytes) -> None:
    with pytest.raises(WireError):
        unpack_arrays(content)
    whole = pack_arrays({"a": np.arange(9, dtype=np.int32)})
    with pytest.raises(WireError):
        unpack_arrays(whole[:-5])
    with pytest.raises(WireError):
        unpack_arrays(zlib.compress(msgspec.msgpack.encode({"a": ("O8", b"12345678")})))


def test_every_field_is_documented() -> None:
    named = set(re.findall(r"`(\w+)`", DOCUMENT.read_text()))
    record = readable(attempt())
    fields = {*record, *record["verdict"], *(field for m in record["messages"] for field in m)}
    fields |= set(prediction(attempt(), "m")) | {field for m in readable(branched())["messages"] for field in m}
    assert fields <= named, f"not in docs/55-reading-trajectories.md: {sorted(fields - named)}"


def test_a_share_is_written_and_every_prediction(tmp_path: Path) -> None:
    records = Records(tmp_path, "actor-0", share=0.25, model="tiny")
    for number in range(400):
        records.write(attempt(f"g{number // 8}/{number % 8}"))
    records.close()
    lines = (tmp_path / "trajectories/actor-0.jsonl").read_text().splitlines()
    assert 60 <= len(lines) <= 140
    members = [json.loads(line)["episode_id"][-1] for line in lines]
    assert all(members.count(str(member)) >= 5 for member in range(8))  # no member of the groups is left out
    predictions = [json.loads(line) for line in (tmp_path / "predictions/actor-0.jsonl").read_text().splitlines()]
    assert len(predictions) == 400
    assert predictions[0] == {
        "instance_id": "calc-1",
        "model_name_or_path": "tiny",
        "model_patch": "diff --git a/x b/x\n",
        "episode_id": "g0/0",
    }


def test_the_swebench_harness_reads_predictions(tmp_path: Path) -> None:
    utils = pytest.importorskip("swebench.harness.utils", reason="the extra `grading` is not installed")
    records = Records(tmp_path, "actor-0", share=1.0, model="tiny")
    records.write(attempt())
    records.close()
    [read] = utils.get_predictions_from_file(str(tmp_path / "predictions/actor-0.jsonl"), "unused", "test")
    expected = {"instance_id": "calc-1", "model_name_or_path": "tiny", "model_patch": "diff --git a/x b/x\n"}
    assert expected.items() <= read.items()


def test_nothing_is_written_unless_asked(tmp_path: Path) -> None:
    records = Records(tmp_path, "actor-0", share=0.0)
    records.write(attempt())
    records.close()
    assert list(tmp_path.iterdir()) == []


def test_text_that_no_encoding_holds_is_written(tmp_path: Path) -> None:
    records = Records(tmp_path, "actor-0", share=1.0)
    records.write(attempt(text="\ud800 \u2028 \0"))
    records.close()
    (line,) = (tmp_path / "trajectories/actor-0.jsonl").read_text().split("\n")[:-1]
    assert json.loads(line)["messages"][1]["content"] == "? \u2028 \0"


def test_a_full_disk_costs_the_record_only(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories/actor-0.jsonl").symlink_to("/dev/full")
    records = Records(tmp_path, "actor-0", share=1.0)
    records.write(attempt())
    assert "g/0 is not recorded" in caplog.text
    records.close()


def test_episodes_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = Records(tmp_path, "actor-0", share=1.0)
    records.write(attempt("g/0"))
    records.write(msgspec.structs.replace(attempt("g/1", resolved=False)))
    records.close()
    with (tmp_path / "trajectories/actor-0.jsonl").open("a") as file:
        file.write('{"half": ')
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == (
        "g/0  calc-1  solved  submitted after 2 turns, 8 tokens, format errors: 1\n"
        "g/1  calc-1  failed  submitted after 2 turns, 8 tokens, format errors: 1\n"
    )
    assert main([str(tmp_path), "g/1"]) == 0
    assert "--- assistant (format error)\nI look.\n--- tool\nno command\n" in capsys.readouterr().out
    assert main([str(tmp_path), "g/9"]) == 2
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "found none" in capsys.readouterr().err
