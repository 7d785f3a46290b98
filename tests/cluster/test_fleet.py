"""Hosts that lack what a run needs there are refused by name. Ray's part, which asks them, is left out."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from msgspec import structs

from cluster.hosts import agent
from cluster.hosts.agent import HostAgent, Prepared
from cluster.hosts.fleet import Fleet
from cluster.hosts.plan import Host, Placed, Plan, Size
from cluster.run_files import RunFiles
from protocol.config import ModelSettings, Settings, TaskSettings
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

    class Agent:
        """Its calls are made when their answers are waited for."""

        def __init__(self, host):
            self.prepare = SimpleNamespace(remote=lambda *_: lambda: self._prepared(host.name))
            self.bring = SimpleNamespace(remote=lambda *words: lambda: HostAgent().bring(*words))

        def _prepared(self, host):
            files = RunFiles("run", places[host]["run"], tmp_path)
            return Prepared(files, agent._is_marked(files))

    monkeypatch.setattr(Fleet, "_agent_on", lambda _, host: Agent(host))
    monkeypatch.setattr(Fleet, "_answered", lambda _, host, agent, answer, timeout_s: answer())
    monkeypatch.setattr(Fleet, "_wait_for_beats", lambda *_: None)
    settings = Settings(
        model=ModelSettings(path=str(places["here"]["model"])), tasks=TaskSettings(cache_dir=tmp_path / "cache")
    )
    fleet = Fleet(settings, RunFiles("run", places["here"]["run"], tmp_path), Keys.generate(), "127.0.0.1")
    yield fleet
    fleet.close()


def rank_on(host):
    return Plan([HERE, THERE], [Placed(name="learner-0", role="learner", host=host, size=Size())])


def test_alike_hosts_are_taken_and_the_run_directory_shows_nothing_of_it(fleet, places):
    fleet.prepare([HERE, THERE])
    assert not list(places["here"]["run"].iterdir())


def test_a_host_gets_the_model_that_the_launcher_has(fleet, places, tmp_path):
    """The paths are of one machine here: what the launcher's directory holds by then is what the other host finds."""
    fleet.prepare([HERE, THERE])
    model = places["here"]["model"]
    assert fleet.settings_on("there").model.path == fleet.settings_on("here").model.path == str(model)
    assert fleet.has_weights("here") and not fleet.has_weights("there")
    tree = fleet._trees[0]
    model.rename(tmp_path / "away")
    fleet._file_server.offer(structs.replace(tree, source=str(tmp_path / "away")))
    fleet.bring([THERE], {"there"})
    found = Path(fleet.settings_on("there").model.path)
    assert found != model and (found / "config.json").read_bytes() == (tmp_path / "away" / "config.json").read_bytes()
    assert fleet.has_weights("there")


def test_ranks_go_only_where_the_launchers_run_directory_is(fleet, places):
    fleet.prepare([HERE, THERE])
    fleet.check(rank_on("here"))
    with pytest.raises(ConfigError, match="learner-0 goes to there, which has another --run-dir"):
        fleet.check(rank_on("there"))
    places["there"]["run"] = places["here"]["run"]  # a file system that they share
    fleet.prepare([HERE, THERE])
    fleet.check(rank_on("there"))
