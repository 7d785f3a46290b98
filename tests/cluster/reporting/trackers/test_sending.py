"""A run's lines reach its tracker once each, whoever sends them and whatever happens; nobody waits for a tracker."""

from __future__ import annotations

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from cluster.front_door.main import main
from cluster.reporting.trackers import sending
from cluster.reporting.trackers.beside import trackers_beside
from cluster.reporting.trackers.fake import FakeTracker
from cluster.reporting.trackers.following import SYSTEM_EVERY_S, Follower, alone, parse, reached
from cluster.reporting.trackers.sending import Sending, about
from protocol.config import MetricsSettings, Settings
from protocol.metrics import JsonlSink
from tests.cluster.reporting.trackers.test_trackers import read_fake, read_mlflow

Trouble = list[Exception | threading.Event]


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    (directory / "logs").mkdir(parents=True)
    (directory / "settings.json").write_text(Settings(steps=7).model_dump_json())
    return directory


def write_steps(run_dir: Path, *steps: int) -> None:
    sink = JsonlSink(run_dir / "metrics.jsonl")
    for step in steps:
        sink.write("step", {"reward_mean": step / 10}, step)
    sink.close()


def send(run_dir: Path, store: Path, trouble: Trouble | None = None) -> tuple[Sending, list[str]]:
    said: list[str] = []
    found = Sending(about(run_dir), "fake", str(store), lambda where: FakeTracker(where, trouble), said.append)
    found.start()
    return found, said


def steps_in(store: Path, run: str = "run-0") -> list[int]:
    lines = json.loads((store / f"{run}.json").read_text())["lines"]
    return [line[2] for line in lines]


def wait_for(condition: object, timeout_s: float = 60) -> None:
    until = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.02)


def test_every_line_is_sent_once_over_two_lives_of_a_run(run_dir: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    for steps in ((1, 2, 3), (3, 4)):  # the second life trains step 3 again
        write_steps(run_dir, *steps)
        sending, said = send(run_dir, store)
        sending.end("FINISHED")
        assert sending.join(30) and sending.is_done
        assert said == [f"fake {store}, run-0"]
    assert steps_in(store) == [1, 2, 3, 3, 4]
    assert reached(run_dir, "fake").done == (run_dir / "metrics.jsonl").stat().st_size
    other = tmp_path / "other"
    sending, _ = send(run_dir, other)
    sending.end("FINISHED")
    assert sending.join(30)
    assert steps_in(other) == [1, 2, 3, 3, 4]  # a tracker that knows nothing of the run gets all


def test_a_tracker_that_is_away_is_said_once_and_gets_all_later(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_TRY_AGAIN_S", 0.05)
    write_steps(run_dir, 1)
    trouble: Trouble = [ConnectionError("refused\nand more"), ConnectionError("refused"), ConnectionError("refused")]
    found, said = send(run_dir, tmp_path / "store", trouble)
    wait_for(lambda: not trouble and len(said) == 2)
    assert said[0].startswith(
        f"fake {tmp_path / 'store'} takes no metrics (ConnectionError: refused); the run does not"
    )
    assert said[1] == "fake answers again"
    write_steps(run_dir, 2)
    wait_for(lambda: steps_in(tmp_path / "store") == [1, 2])
    found.end("FINISHED")
    assert found.join(30) and found.is_done


def test_lines_that_were_refused_in_the_middle_are_sent_again(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_TRY_AGAIN_S", 0.05)
    trouble: Trouble = []
    found, said = send(run_dir, tmp_path / "store", trouble)
    wait_for(lambda: said)
    trouble.append(TimeoutError("read timed out"))
    write_steps(run_dir, 1, 2)
    wait_for(lambda: len(said) == 3)
    found.end("KILLED")
    assert found.join(30)
    assert steps_in(tmp_path / "store") == [1, 2]
    assert json.loads((tmp_path / "store" / "run-0.json").read_text())["status"] == "KILLED"


def test_one_that_is_still_away_at_the_end_is_left(run_dir: Path, tmp_path: Path) -> None:
    found, said = send(run_dir, tmp_path / "store", [ConnectionError("refused") for _ in range(9)])
    wait_for(lambda: said)
    found.end("FINISHED")
    assert found.join(30) and not found.is_done and found.failed
    assert len(said) == 1 and f"longhaul track {run_dir}" in said[0]


def test_one_that_hangs_is_said_once_and_holds_up_nobody(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SILENT_S", 0.1)
    released = threading.Event()
    found, said = send(run_dir, tmp_path / "store", [released])
    wait_for(lambda: not found.join(0.05) and said)
    found.end("FINISHED")
    assert not found.join(0.2)
    assert len(said) == 1 and "has not answered" in said[0]
    released.set()
    assert found.join(30) and found.is_done


def test_samples_are_thinned_and_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert Follower(path, 0).read() == []
    samples = [{"kind": "system", "time": 100.0 + n, "step": 0, "x": n, "nan": None} for n in range(50)]
    text = "".join(json.dumps(sample) + "\n" for sample in samples)
    path.write_bytes(
        b'noise\n[]\n{"kind": "step"}\n{"kind": "evil", "time": 1, "step": 1}\n' + text.encode() + b'{"kind'
    )
    follower = Follower(path, 0)
    lines = follower.read()
    assert [line.values for line in lines] == [{"x": n} for n in range(0, 50, int(SYSTEM_EVERY_S))]
    assert follower.is_behind and follower.read() == []  # the last line is not ended
    with path.open("ab") as file:
        file.write(b'": "step", "time": 160, "step": 3, "loss": 1e999, "ok": true}\n')
    assert [(line.step, line.values) for line in follower.read()] == [(3, {"ok": 1.0})]
    assert Follower(path, 1 << 40).done == 0
    assert parse(b"[" * 100_000) is None


def test_two_do_not_send_at_once(run_dir: Path) -> None:
    with alone(run_dir, "x") as first, alone(run_dir, "x") as second, alone(run_dir, "y") as other:
        assert (first, second, other) == (True, False, True)
    with alone(run_dir, "x") as again:
        assert again


def test_a_run_sends_to_mlflow_from_a_process_beside_it_and_goes_on(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.reporting.trackers.beside.STOP_S", 120.0)
    store = tmp_path / "mlruns"
    write_steps(run_dir, 1)
    said: list[str] = []
    for status, steps in (("KILLED", (2,)), ("FINISHED", (3, 4))):
        with trackers_beside(MetricsSettings(mlflow=str(store)), run_dir, said.append) as trackers:
            write_steps(run_dir, *steps)
            wait_for(lambda: said, 120)
            trackers.status = status  # type: ignore[assignment]
        run = reached(run_dir, "mlflow").run
        kept = read_mlflow(store, run)
        assert kept.status == status
        said.clear()
    assert kept.points == {("step/reward_mean", n, n / 10) for n in (1, 2, 3, 4)}
    assert kept.settings["steps"] == "7"
    assert len(list(store.glob("*/*/meta.yaml"))) == 1


def test_a_server_that_takes_and_never_answers_delays_nothing(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.reporting.trackers.beside.STOP_S", 1.0)
    write_steps(run_dir, 1)
    said: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        with trackers_beside(MetricsSettings(mlflow=uri), run_dir, said.append):
            connection, _ = server.accept()  # it has begun to ask
        connection.close()
    assert said == [f"mlflow has not taken everything within 1 s: longhaul track {run_dir} sends the rest"]


def test_the_command_sends_what_is_missing(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["track", str(run_dir)]) == 2
    assert "its settings name no tracker: give --wandb PROJECT or --mlflow URI" in capsys.readouterr().err
    assert main(["track", str(tmp_path / "nothing")]) == 2
    capsys.readouterr()
    write_steps(run_dir, 1, 2)
    store = tmp_path / "store"
    assert main(["track", str(run_dir), "--mlflow", str(store)]) == 0
    assert capsys.readouterr().out.startswith(f"mlflow {store}, run ")
    assert {step for _, step, _ in read_mlflow(store, reached(run_dir, "mlflow").run).points} == {1, 2}
    with alone(run_dir, "mlflow"):
        assert main(["track", str(run_dir), "--mlflow", str(store)]) == 1


def test_the_fake_is_read_as_it_says(tmp_path: Path, run_dir: Path) -> None:
    tracker = FakeTracker(str(tmp_path / "store"))
    run = tracker.begin(about(run_dir), "")
    tracker.end("FAILED")
    assert read_fake(tmp_path / "store", run).status == "FAILED"
