"""One contract for every tracker, run over the real MLflow (a directory) and the real W&B (offline, on disk)."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cluster.reporting.trackers import table
from cluster.reporting.trackers.fake import FakeTracker
from cluster.reporting.trackers.mlflow_runs import MlflowTracker
from cluster.reporting.trackers.tracker import About, Line, Tracker
from cluster.reporting.trackers.weights_and_biases import WandbTracker
from protocol.config import MetricsSettings, Settings
from protocol.errors import ConfigError

Point = tuple[str, int, float]  # metric, step, value
LINES = [
    Line("system", 1000.0, 0, {"replay.running": 32.0}),
    *(Line("step", 1000.0 + n, n, {"reward_mean": n / 10, "odd name!%": -1.0}) for n in (1, 2)),
    Line("eval", 1003.5, 1, {"pass_at_1": 0.25}),
]
MORE = [Line("step", 1010.0, 3, {"reward_mean": 0.5})]


class Kept(NamedTuple):
    """What a tracker has of a run."""

    points: set[Point]
    settings: dict[str, str]
    status: str


class Case(NamedTuple):
    """A tracker and somebody else's way to read what it keeps."""

    open: Callable[[], Tracker]
    read: Callable[[str], Kept]
    odd: str  # how it spells a metric's odd name


def read_fake(directory: Path, run: str) -> Kept:
    kept = json.loads((directory / f"{run}.json").read_text())
    lines = [Line(*line) for line in kept["lines"]]
    points = {(f"{line.kind}/{name}", line.step, value) for line in lines for name, value in line.values.items()}
    return Kept(points, {}, kept["status"])


def read_mlflow(directory: Path, run: str) -> Kept:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=str(directory))
    kept = client.get_run(run)
    points = {(m.key, m.step, m.value) for name in kept.data.metrics for m in client.get_metric_history(run, name)}
    return Kept(points, kept.data.params, kept.info.status)


def read_wandb(directory: Path, run: str) -> Kept:
    """From the files that `wandb sync` would send, once each has its end: W&B's own process writes them in its time."""
    until = time.monotonic() + 60
    num_lives = len(list((directory / "wandb").glob("offline-run-*")))
    while (found := _read_wandb(directory, run))[1] < num_lives and time.monotonic() < until:
        time.sleep(0.1)
    return found[0]


def _read_wandb(directory: Path, run: str) -> tuple[Kept, int]:
    """And how many lives have ended."""
    from wandb.proto import wandb_internal_pb2

    points: set[Point] = set()
    settings: dict[str, str] = {}
    status, num_ended = "", 0
    files = list((directory / "wandb").glob(f"offline-run-*/run-{run}.wandb"))
    for path in sorted(files, key=lambda file: file.stat().st_ctime_ns):
        for raw in records_of(path):
            record = wandb_internal_pb2.Record.FromString(raw)
            for item in (*record.run.config.update, *record.config.update):
                settings[item.key] = str(json.loads(item.value_json))
            if record.HasField("exit"):
                status = "FINISHED" if record.exit.exit_code == 0 else "FAILED"
                num_ended += 1
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            numbers = {name: value for name, value in row.items() if "/" in name}
            points |= {(name, row["optimizer_step"], value) for name, value in numbers.items()}
    return Kept(points, settings, status), num_ended


def records_of(path: Path) -> Iterator[bytes]:
    """LevelDB's log format, behind seven bytes: blocks of 32 KiB with pieces of checksum, length and type."""
    data, at, piece = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if (1 << 15) - at % (1 << 15) < 7:
            at += (1 << 15) - at % (1 << 15)
        _, size, kind = struct.unpack_from("<IHB", data, at)
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last piece
            yield piece
            piece = b""


@pytest.fixture(params=["fake", "mlflow", "wandb"])
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    store = tmp_path / "store"
    if request.param == "fake":
        yield Case(lambda: FakeTracker(str(store)), lambda run: read_fake(store, run), "odd name!%")
    elif request.param == "mlflow":
        yield Case(lambda: MlflowTracker(str(store)), lambda run: read_mlflow(store, run), "odd name__")
    else:
        import wandb

        monkeypatch.setenv("WANDB_MODE", "offline")
        yield Case(lambda: WandbTracker("made"), lambda run: read_wandb(tmp_path, run), "odd name!%")
        wandb.teardown()  # ends its service, which would see the end of the tests as an error


def about(tmp_path: Path, **settings: object) -> About:
    return About("a run", tmp_path, {"learner.lr": 1e-6, "resume": None, "stages": []} | settings, {"torch": "2"})


def points(lines: list[Line], odd: str) -> set[Point]:
    return {
        (f"{line.kind}/{name.replace('odd name!%', odd)}", line.step, value)
        for line in lines
        for name, value in line.values.items()
    }


def test_a_run_is_kept_and_one_that_goes_on_is_the_same(case: Case, tmp_path: Path) -> None:
    first = case.open()
    run = first.begin(about(tmp_path), "")
    first.send(LINES)
    first.end("FAILED")
    kept = case.read(run)
    assert kept.points == points(LINES, case.odd)
    assert kept.status == "FAILED"
    assert kept.settings.get("learner.lr", "1e-06") == "1e-06"
    second = case.open()
    assert second.begin(about(tmp_path, **{"learner.lr": 2e-6, "steps": 40}), run) == run
    assert run in second.where or tmp_path.name in second.where
    second.send(MORE)
    second.end("FINISHED")
    kept = case.read(run)
    assert kept.points == points(LINES + MORE, case.odd)
    assert kept.status == "FINISHED"


def test_two_runs_are_two(case: Case, tmp_path: Path) -> None:
    runs = []
    for _ in range(2):
        tracker = case.open()
        runs.append(tracker.begin(about(tmp_path), ""))
        tracker.send(MORE)
        tracker.end("FINISHED")
    assert len(set(runs)) == 2


@pytest.mark.parametrize(
    ("settings", "installed", "said"),
    [
        ({"wandb": "p"}, set(), r"--metrics.wandb p: wandb is not installed here: pip install 'longhaul\[wandb\]'"),
        ({"mlflow": "runs"}, {"wandb"}, r"--metrics.mlflow runs: mlflow is not installed here: pip install"),
        ({"mlflow": "sqlite:///x.db"}, {"mlflow"}, "a database needs the whole of MLflow"),
        ({"mlflow": __file__}, {"mlflow"}, "expected a directory or a tracking server, got a file"),
    ],
)
def test_what_cannot_be_had_is_refused_in_a_line(settings: dict[str, str], installed: set[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        table.check(Settings(metrics=MetricsSettings(**settings)), installed.__contains__)
    assert "\n" not in str(refused.value)


def test_what_can_be_had_is_not() -> None:
    table.check(Settings(metrics=MetricsSettings(wandb="p", mlflow="http://127.0.0.1:5000")))
    table.check(Settings(), lambda name: False)
