"""A whole run over two hosts made of namespaces, each with its own files: it trains, bears a wound and a cut, protects
what it opens, and leaves nothing on either, whether it is told to end or its launcher is killed.
"""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import ledger
from benchmarks.hosts.network import CannotMakeHosts, Network, start_ray
from benchmarks.hosts.run import MODEL, ROOT, HostedRun
from benchmarks.hosts.scan import scanned
from cluster.hosts.leases import KILLING_S
from cluster.run_files import complete_checkpoints
from cluster.security.listeners import Listener

CUT_S = 20
LEASE_S = 10
BUSY_S = 60  # a machine that has other work clears late
pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def network():
    try:
        with Network(2) as network:
            yield network
    except CannotMakeHosts as error:
        pytest.skip(f"no hosts can be made here: {error}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def address(network, folder):
    return start_ray(network, folder)


@pytest.fixture(scope="module")
def run(network, address, folder):
    run = HostedRun(network, address, folder / "output.txt", {})
    yield run
    run.close()


def test_it_trains_with_parts_on_both_hosts(run):
    run.take_steps(1)
    assert all("actor process" in " ".join(run.placed_on(host)) for host in run.network.hosts)
    assert "generator" in " ".join(run.placed_on(run.network.hosts[1])), run.read("placement.txt")
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
        seen = {(one.owner, protection) for one, protection in scanned(host, other)}
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
    mine = Listener(Path(sys.executable).name, one.address, 7009)
    assert (mine, "none") in scanned(one, other)
    for process in one.running("0.0.0.0', 7009"):
        process.kill()
    serving.communicate(timeout=20)


def test_a_killed_buffer_is_back_at_its_address(run):
    (buffer,) = run.network.hosts[0].running("ray::ReplayBuffer")
    buffer.kill()
    run.wait_until(lambda: "replay-buffer is ready again" in run.text(), "the replay buffer")
    run.take_steps(2)


def test_a_cut_that_is_shorter_than_a_lease_costs_no_part(run):
    before = run.text().count("is started again")
    run.network.hosts[1].cut()
    time.sleep(CUT_S)
    run.network.hosts[1].mend()
    run.take_steps(2)
    assert run.text().count("is started again") == before == 1, run.text()


def balances(run):
    """No episode of a run is lost, none trained on twice."""
    state = ledger.state_of(run.directory)
    return state.tally.leased > 0 and ledger.lost(state) == 0 and ledger.trained_twice(run.directory) == 0


def test_a_run_that_is_told_to_end_leaves_a_checkpoint_and_nothing_else_on_any_host(run):
    run.take_steps(1)
    for host in run.network.hosts:  # or the look for what is left would see nothing
        traces = "\n".join(run.left(host))
        for kind in ("process: ", "listens: ", "socket: /run/longhaul/", "file: /tmp/longhaul-", "file: /dev/shm/"):
            assert kind in traces, f"{kind} on {host.name}: {traces}"
    run.signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM, run.text()
    assert run.wait_until_clear(BUSY_S) == []
    steps = [record["step"] for record in run.records("step")]
    assert max(complete_checkpoints(run.directory)) == max(steps)
    assert balances(run)


def test_a_run_whose_launcher_is_killed_leaves_nothing_on_any_host(run, address, folder):
    """What the one before left is gone on with, until then."""
    again = HostedRun(
        run.network, address, folder / "output.txt", {"--resume": "auto", "--hosts.unreachable-s": LEASE_S}
    )
    try:
        before = run.records("step")
        again.wait_until(lambda: len(again.records("step")) > len(before), "one more step")
        assert again.records("step")[len(before)]["step"] == before[-1]["step"] + 1
        again.signal(signal.SIGKILL)
        assert again.wait_for_end() in (-signal.SIGKILL, 128 + signal.SIGKILL)
        assert again.wait_until_clear(LEASE_S + KILLING_S + BUSY_S) == []
        assert balances(again)
    finally:
        again.close()
