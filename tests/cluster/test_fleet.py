"""Hosts that lack what a run needs there are refused by name. Ray's part, which asks them, is left out."""

import shutil
from pathlib import Path

import pytest

from cluster.hosts import agent
from cluster.hosts.agent import Prepared, fingerprint
from cluster.hosts.fleet import Fleet
from cluster.hosts.plan import Host, Placed, Plan, Size
from cluster.run_files import RunFiles
from protocol.config import ModelSettings, Settings
from protocol.errors import ConfigError
from protocol.sockets import Keys

TINY = Path(__file__).parents[2] / "assets" / "tiny"
HERE, THERE = Host(name="here", size=Size(), is_launcher=True), Host(name="there", size=Size())


@pytest.fixture
def places(tmp_path):
    """By host, where its model and its run directory are."""
    found = {}
    for host in (HERE, THERE):
        shutil.copytree(TINY, tmp_path / host.name / "model", ignore=shutil.ignore_patterns("*.safetensors"))
        (tmp_path / host.name / "run").mkdir()
        found[host.name] = {"model": tmp_path / host.name / "model", "run": tmp_path / host.name / "run"}
    return found


@pytest.fixture
def fleet(places, tmp_path, monkeypatch):
    """One whose hosts are directories."""

    def prepared(_, host, *__):
        files = RunFiles("run", places[host]["run"], tmp_path)
        return Prepared(files, agent._is_marked(files), fingerprint(places[host]["model"]))

    monkeypatch.setattr(Fleet, "_ask", lambda *_: (None, None))
    monkeypatch.setattr(Fleet, "_answered", prepared)
    monkeypatch.setattr(Fleet, "_wait_for_beats", lambda *_: None)
    settings = Settings(model=ModelSettings(path=str(places["here"]["model"])))
    fleet = Fleet(settings, RunFiles("run", places["here"]["run"], tmp_path), Keys.generate(), "127.0.0.1")
    yield fleet
    fleet.close()


def rank_on(host):
    return Plan([HERE, THERE], [Placed(name="learner-0", role="learner", host=host, size=Size())])


def test_alike_hosts_are_taken_and_the_run_directory_shows_nothing_of_it(fleet, places):
    fleet.prepare([HERE, THERE])
    assert not list(places["here"]["run"].iterdir())


def test_a_host_without_the_model_is_named(fleet, places):
    shutil.rmtree(places["there"]["model"])
    with pytest.raises(ConfigError, match=r"there has no model at --model\.path"):
        fleet.prepare([HERE, THERE])


def test_a_host_with_another_model_is_named(fleet, places):
    with (places["there"]["model"] / "config.json").open("a") as config:
        config.write("\n")
    with pytest.raises(ConfigError, match=r"there has another model at --model\.path"):
        fleet.prepare([HERE, THERE])


def test_ranks_go_only_where_the_launchers_run_directory_is(fleet, places):
    fleet.prepare([HERE, THERE])
    fleet.check(rank_on("here"))
    with pytest.raises(ConfigError, match="learner-0 goes to there, which has another --run-dir"):
        fleet.check(rank_on("there"))
    places["there"]["run"] = places["here"]["run"]  # a file system that they share
    fleet.prepare([HERE, THERE])
    fleet.check(rank_on("there"))
