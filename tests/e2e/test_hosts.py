"""A whole run over two hosts made of namespaces, each with its own files: it trains, bears a wound and a cut, and
protects what it opens.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.security.listeners import Listener
from tests.cluster.hosts import RAY, CannotMakeHosts, Network, start_ray

ROOT = Path(__file__).parent.parent.parent
RUN_DIR, MODEL = "/tmp/run", "/tmp/model"  # of each host its own
FLAGS = {
    "--model.path": MODEL,
    "--tasks.cache-dir": "/run/cache",
    "--run-dir": RUN_DIR,
    "--network.bind": "0.0.0.0",
    "--num-actors": 24,
    "--replay.batch": 8,
    "--replay.group-size": 4,
    "--tasks.count": 32,
    "--steps": 1000,
    "--learner.ranks": 1,
    "--checkpoint.every": 0,
    "--sandbox.backend": "namespace",
}
OURS = {"PYTHONPATH": str(ROOT)}
CUT_S = 20
PROBE = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from cluster.security.listeners import Listener, protection
with ThreadPoolExecutor(16) as pool:
    print(json.dumps(list(pool.map(lambda words: protection(Listener(*words)), json.loads(sys.argv[1])))))
"""
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def network():
    try:
        with Network(2) as network:
            yield network
    except CannotMakeHosts as error:
        pytest.skip(f"no hosts can be made here: {error}")


class HostedRun:
    """`launch.py` on the first host of a network."""

    def __init__(self, network, folder, **extra):
        self.network = network
        address = start_ray(network, folder)
        shutil.copytree(ROOT / "assets" / "tiny", network.hosts[0].path(MODEL))  # no other host has it
        flags = FLAGS | {"--ray-address": address} | extra
        self.output = (folder / "output.txt").open("w+")
        self.process = network.hosts[0].start(
            *(sys.executable, str(ROOT / "launch.py"), *(str(word) for pair in flags.items() for word in pair)),
            env=os.environ | RAY | OURS,
            stdout=self.output,
            stderr=subprocess.STDOUT,
        )

    def read(self, name):
        """A file of the run directory, so far."""
        path = self.network.hosts[0].path(f"{RUN_DIR}/{name}")
        return path.read_text() if path.exists() else ""

    def records(self, kind):
        """Whole records of one kind in its metrics."""
        lines = self.read("metrics.jsonl").splitlines(keepends=True)
        return [record for line in lines if line.endswith("\n") and (record := json.loads(line))["kind"] == kind]

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def wait_until(self, condition, timeout_s=300):
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < deadline, self.text()
            time.sleep(0.2)

    def take_steps(self, count):
        target = len(self.records("step")) + count
        self.wait_until(lambda: len(self.records("step")) >= target)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.output.close()


@pytest.fixture(scope="module")
def run(network, tmp_path_factory):
    run = HostedRun(network, tmp_path_factory.mktemp("hosts"))
    try:
        yield run
    finally:
        run.close()


def test_it_trains_with_parts_on_both_hosts(run):
    run.take_steps(1)
    placement = run.read("placement.txt")
    assert all(re.search(rf"^{host.name}/.*actor process", placement, re.MULTILINE) for host in run.network.hosts)
    assert re.search(r"^host1/.*generator", placement, re.MULTILINE), placement
    assert not run.network.hosts[1].path(MODEL).exists()  # it went there by its content
    assert run.records("step")[0]["fresh_mismatch_abs_mean"] < 1e-3


def documented():
    """Owners of listeners with the protection of each, as the docs list them."""
    page = (ROOT / "docs" / "40-own-cluster.md").read_text()
    table = page.partition("| listener of | protection |")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]
    return {(owner.strip("`"), protection) for owners, protection, *_ in rows for owner in owners.split(", ")}


def test_every_listener_is_protected_as_the_docs_say(run):
    known = documented()
    for host, other in (run.network.hosts, run.network.hosts[::-1]):
        found = [one for one in host.listeners() if not one.is_loopback]
        asked = json.dumps([[one.owner, one.address, one.port] for one in found])
        said = json.loads(other.run(sys.executable, "-c", PROBE, asked, env=os.environ | OURS, timeout_s=200))
        now = set(host.listeners())  # what has ended since was no listener when it was asked
        seen = {(one.owner, protection) for one, protection in zip(found, said, strict=True) if one in now}
        assert seen, "a run over hosts listens on some"
        unknown = seen - known
        assert not unknown, sorted(unknown)


def test_a_socket_without_protection_is_seen(run):
    """What the scan would say of a listener that takes anybody."""
    one, other = run.network.hosts
    serve = (
        "import http.server as h; s = h.HTTPServer(('0.0.0.0', 7009), h.SimpleHTTPRequestHandler); "
        "print(1, flush=True); s.serve_forever()"
    )
    serving = one.start(sys.executable, "-c", serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert serving.stdout.readline()
    mine = next(found for found in one.listeners() if found.port == 7009)
    assert mine == Listener(Path(sys.executable).name, one.address, 7009)
    asked = json.dumps([[mine.owner, mine.address, mine.port]])
    assert json.loads(other.run(sys.executable, "-c", PROBE, asked, env=os.environ | OURS)) == ["none"]
    for process in one.running("0.0.0.0', 7009"):
        process.kill()
    serving.communicate(timeout=20)


def test_a_killed_buffer_is_back_at_its_address(run):
    (buffer,) = run.network.hosts[0].running("ray::ReplayBuffer")
    buffer.kill()
    run.wait_until(lambda: "replay-buffer is ready again" in run.text())
    run.take_steps(2)


def test_a_cut_that_is_shorter_than_a_lease_costs_no_part(run):
    before = run.text().count("is started again")
    run.network.hosts[1].cut()
    time.sleep(CUT_S)
    run.network.hosts[1].mend()
    run.take_steps(2)
    assert run.text().count("is started again") == before == 1, run.text()
