import contextlib
import json
import math
import resource

import pytest

from protocol.metrics import JsonlSink, TensorBoardSink, reduce_metrics


def test_the_last_word_of_a_name_says_how_parts_become_one():
    parts = [
        {"episodes": 3.0, "reward_mean": 0.5, "staleness_max": 1.0, "learner.wait_share": 0.2, "version": 3.0},
        {"episodes": 4.0, "reward_mean": 1.0, "staleness_max": 5.0, "version": 4.0, "generated_tokens": 7.0},
    ]
    assert reduce_metrics(parts) == {
        "episodes": 7.0,
        "reward_mean": 0.75,
        "staleness_max": 5.0,
        "learner.wait_share": 0.2,
        "version": 4.0,
        "generated_tokens": 7.0,
    }


def test_jsonl_lines_are_valid_json_even_for_nan(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write("step", {"loss": math.nan, "reward_mean": 0.25}, step=3)
    sink.write("system", {"episodes": 2.0}, step=3)
    sink.close()
    first, second = (json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (first["kind"], first["step"], first["loss"], first["reward_mean"]) == ("step", 3, None, 0.25)
    assert second["episodes"] == 2.0


@contextlib.contextmanager
def files_of_at_most(size):
    """No file of this process may grow beyond `size`: what a full disk says, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_costs_whole_lines_and_never_half_of_one(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.write("system", {"episodes": 1.0}, step=1)
    with files_of_at_most((tmp_path / "metrics.jsonl").stat().st_size + 20):
        for _ in range(2):
            with pytest.raises(OSError):
                sink.write("system", {"episodes": 2.0}, step=2)
    sink.write("system", {"episodes": 3.0}, step=3)
    sink.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]


def test_tensorboard_survives_a_full_disk(tmp_path):
    """Its own writer's thread would die, and whoever writes then wait for ever."""
    sink = TensorBoardSink(tmp_path)
    sink.write("step", {"loss": 1.0}, step=1)
    size = max(file.stat().st_size for file in tmp_path.iterdir())
    with files_of_at_most(size + 20):
        for step in range(2, 40):
            with contextlib.suppress(OSError):
                sink.write("step", {f"loss_{i}": 1.0 for i in range(20)}, step=step)
    sink.write("step", {"loss": 1.0}, step=40)
    sink.close()
    assert b"step/loss" in max(tmp_path.iterdir(), key=lambda file: file.stat().st_mtime_ns).read_bytes()


def test_tensorboard_gets_an_event_file(tmp_path):
    sink = TensorBoardSink(tmp_path)
    sink.write("step", {"loss": 1.0}, step=1)
    sink.close()
    assert any(file.name.startswith("events") for file in tmp_path.iterdir())
