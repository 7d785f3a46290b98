"""What every process does and since when: written by the run, read by the page."""

import json

import pytest

from cluster.reporting.fleet_states import FleetStates, Seen, does
from console.run_data.fleet import FILE, processes, read_doing


def seen(name="generator-0", role="generator", state="working", restarts=0, **status):
    return Seen(name, role, "host0/a", state, restarts, status)


def test_since_is_of_what_it_does_and_not_of_its_figures(tmp_path):
    states = FleetStates(tmp_path)
    states.write([seen(running=3.0)], now=100.0)
    states.write([seen(running=5.0, resident_bytes=7e9)], now=200.0)
    now = read_doing(tmp_path)["generator-0"]
    assert (now.doing, now.since, now.at, now.memory_bytes) == ("generates", 100.0, 200.0, 7e9)
    assert now.detail.startswith("5 requests") and not now.is_stuck
    states.write([seen(state="silent", restarts=2)], now=300.0)
    now = read_doing(tmp_path)["generator-0"]
    assert (now.doing, now.since, now.restarts) == ("silent", 300.0, 2) and now.is_stuck


def test_what_is_stuck_comes_before_what_complains(tmp_path):
    (tmp_path / "logs").mkdir()
    for name in ("learner-0", "generator-0", "generator-1", "keeper"):
        (tmp_path / "logs" / f"{name}.log").write_text("ERROR x\n" if name == "learner-0" else "ready\n")
    working = [seen("learner-0", "learner"), seen("generator-0")]
    FleetStates(tmp_path).write([*working, seen("generator-1", state="failed")], now=1.0)
    assert [p.name for p in processes(tmp_path, {})] == ["generator-1", "learner-0", "generator-0", "keeper"]


@pytest.mark.parametrize(
    ("role", "status", "doing"),
    [
        ("learner", {"learner_waiting": 1.0}, "waits for a batch"),
        ("learner", {}, "trains"),
        ("replay", {"running": 4.0}, "waits for episodes"),
        ("replay", {}, "leases nothing"),
        ("actors", {"episodes_executing": 2.0}, "runs episodes"),
        ("actors", {}, "has no episode"),
        ("generator", {"waiting": 1.0}, "generates"),
        ("generator", {}, "has nothing to do"),
    ],
)
def test_it_is_said_in_words(role, status, doing):
    assert does(seen(role=role, **status))[0] == doing


@pytest.mark.parametrize("text", ["", "torn", "[]", '{"at": 1}', '{"at": 1, "processes": [{"name": 1}]}', "null"])
def test_what_is_no_such_file_says_nothing(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    assert read_doing(tmp_path) == {}


def test_a_disk_that_takes_no_more_costs_nothing_else(tmp_path):
    FleetStates(tmp_path / "none").write([seen()], now=1.0)
    FleetStates(tmp_path).write([seen()], now=1.0)
    assert json.loads((tmp_path / FILE).read_text())["at"] == 1.0
