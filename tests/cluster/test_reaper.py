"""Whatever ends a launcher, its runs leave nothing on other hosts; no later start is needed for that."""

import subprocess
import sys
import time

import pytest

from benchmarks.hosts.network import CannotMakeHosts, Network
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

LAUNCHER = """
import sys
from pathlib import Path
from cluster import run_files
from cluster.hosts.fleet import Fleet
from cluster.hosts.plan import Host, Size
from cluster.hosts.reaper import to_json
from protocol.config import Settings
from protocol.sockets import Keys
settings = Settings(hosts=dict(unreachable_s=5), sandbox=dict(backend="namespace"))
files = run_files.claim(Path(sys.argv[2]))
fleet = Fleet(settings, files, Keys.generate(), sys.argv[1])
fleet._leases.begin("host1", 0.0)
print(to_json(fleet.watch_of(Host(name="host1", size=Size()))).decode(), flush=True)
fleet._wait_for_beats({"host1"})
print("heard", flush=True)
for line in sys.stdin:
    if part := line.strip().removeprefix("?"):
        fleet.end("host1", part)
    print(sorted(fleet.surely_gone()), flush=True)
"""
PART = """
import subprocess, sys, time
from cluster.hosts.agent import HostAgent
from cluster.hosts.reaper import from_json
from cluster.processes import _Process
from protocol.config import Settings
from protocol.weights.segments import Segment, segment_path
from sandbox.owners import new_owner, state_dir
watch = from_json(sys.argv[1])
settings = Settings.model_validate_json(watch.settings)
prepared = HostAgent().prepare(settings, watch)
print("prepared", flush=True)
part = _Process("part", settings, prepared.files, watch.keys)
Segment.create(segment_path(watch.files.name, "staging"), 100)
state_dir(new_owner(watch.files.name))
subprocess.Popen(["sleep", "600"])
time.sleep(600)
"""


@pytest.fixture
def network():
    try:
        with Network(2) as network:
            yield network
    except CannotMakeHosts as error:
        pytest.skip(f"no hosts can be made here: {error}")


@pytest.fixture
def run(network, tmp_path):
    """A launcher on one host, and on another a part of its run with all that a part leaves when it is killed."""
    one, other = network.hosts
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    directory = str(tmp_path / "run")
    launcher = one.start(sys.executable, "-c", LAUNCHER, one.address, directory, **pipes)
    watch = launcher.stdout.readline().strip()
    part = other.start(sys.executable, "-c", PART, watch, stdout=subprocess.PIPE)
    try:
        assert part.stdout.readline() == "prepared\n"
        assert launcher.stdout.readline() == "heard\n"
        wait_until(lambda: {path.split("/")[1] for path in other.left()} == {"tmp", "dev", "run"}, 150)
        wait_until(lambda: other.running("sleep 600"), 150)
        yield one, other, launcher
    finally:
        network.close()
        for process in (launcher, part):
            process.communicate(timeout=60)


def is_clear(host):
    return not host.left() and not host.processes()


def lives(host):
    """What the part is, and what it started."""
    return host.running("HostAgent") + host.running("sleep 600")


def test_a_killed_launcher_leaves_nothing_elsewhere(run):
    one, other, _ = run
    for process in one.processes():
        process.kill()
    wait_until(lambda: is_clear(other), 150)


def test_a_host_that_is_cut_off_clears_itself_before_it_counts_as_gone(run):
    _, other, launcher = run
    other.cut()
    while True:
        launcher.stdin.write("?\n")
        launcher.stdin.flush()
        if launcher.stdout.readline() == "['host1']\n":
            break
        time.sleep(0.1)
    assert not lives(other)
    wait_until(lambda: is_clear(other), 150)
    other.mend()


def test_a_stopped_part_is_killed_by_its_hosts_reaper_and_nothing_else_is(run):
    _, other, launcher = run
    (part,) = other.running("HostAgent")
    waiting = part.parent()  # nsenter, which stops with it
    part.suspend()
    launcher.stdin.write("another\npart\n")
    launcher.stdin.flush()
    wait_until(lambda: not other.running("HostAgent"), 150)
    waiting.resume()
    assert other.running("reaper.watch") and other.running("sleep 600")


def test_a_part_whose_reaper_was_killed_does_not_live_on(run):
    """Nobody would end it at the end of the lease."""
    _, other, _ = run
    (reaper,) = other.running("reaper.watch")
    reaper.kill()
    wait_until(lambda: not other.running("HostAgent"), 150)
