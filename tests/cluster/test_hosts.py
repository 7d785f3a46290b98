"""Hosts made of namespaces are hosts: they reach each other, have places of their own, and end."""

import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.hosts.network import CannotMakeHosts, Network
from protocol.sockets import Keys

CONNECT = "import socket, sys; socket.create_connection(('host1', 7000), timeout=float(sys.argv[1])).close()"
LISTEN = "import socket, time; s = socket.create_server(('host1', 7000)); print('up', flush=True); time.sleep(600)"


@pytest.fixture(scope="module")
def network():
    try:
        with Network(2) as network:
            yield network
    except CannotMakeHosts as error:
        pytest.skip(f"no hosts can be made here: {error}")


def reaches(host):
    """Whether `host1` is reached; a cable that was put back is in its own time."""
    deadline = time.monotonic() + 60
    while True:
        try:
            host.run(sys.executable, "-c", CONNECT, "30")
        except AssertionError:
            if time.monotonic() > deadline:
                return False
        else:
            return True


def test_hosts_reach_each_other_until_a_cable_is_out_or_they_are_parted(network):
    one, other = network.hosts
    listening = other.start(sys.executable, "-c", LISTEN, stdout=subprocess.PIPE)
    assert listening.stdout.readline() == "up\n"
    assert reaches(one)
    other.cut()
    with pytest.raises(AssertionError, match=r"timed out|No route"):
        one.run(sys.executable, "-c", CONNECT, "2")
    other.mend()
    assert reaches(one)
    network.part(one, other)
    with pytest.raises(AssertionError, match=r"timed out|No route"):
        one.run(sys.executable, "-c", CONNECT, "2")
    network.rejoin(one, other)
    assert reaches(one)
    inside = other.processes()
    for process in inside:
        process.kill()
    listening.communicate(timeout=60)
    assert not psutil.wait_procs(inside, timeout=60)[1]
    assert not other.processes()


def test_a_host_has_its_own_places_and_name(network):
    one, other = network.hosts
    for place in ("/tmp", "/dev/shm", "/run"):
        one.run("touch", f"{place}/longhaul-here")
        assert "longhaul-here" not in other.run("ls", place)
    assert one.run("hostname") == "host0\n"
    assert set(one.left()) == {"/tmp/longhaul-here", "/dev/shm/longhaul-here"}
    assert not other.left()


def test_nothing_of_a_network_is_left():
    try:
        with Network(1) as network:
            sleeping = network.hosts[0].start("sleep", "600")
            deadline = time.monotonic() + 60
            while not (inside := network.hosts[0].processes()):
                assert time.monotonic() < deadline
                time.sleep(0.05)
    except CannotMakeHosts as error:
        pytest.skip(f"no hosts can be made here: {error}")
    assert sleeping.wait(timeout=60) != 0
    assert not psutil.wait_procs(inside, timeout=60)[1]


def test_a_path_in_shared_memory_is_one_file_or_not(network):
    """Both hosts have one kernel, and so one boot id, as pods on one machine have."""
    identity = (
        "import sys; from pathlib import Path; from protocol.weights.segments import file_identity\n"
        "print(file_identity(Path('/dev/shm/longhaul-there')))"
    )
    one, other = network.hosts
    for host in (one, other):
        host.run("touch", "/dev/shm/longhaul-there")
    there = one.run(sys.executable, "-c", identity)
    assert there == one.run(sys.executable, "-c", identity) != other.run(sys.executable, "-c", identity)


PUBLISH = """
import json, sys, time, torch
from learner.publishing.publisher import WeightPublisher
from protocol.config import WeightSettings
from protocol.sockets import Keys
keys = Keys.generate()
publisher = WeightPublisher(WeightSettings(bucket_mib=1), f"tcp://{sys.argv[1]}:*", "pods", keys)
publisher.publish(1, [("w", torch.full((300, 40), 7.0))])
print(json.dumps([publisher.endpoint, keys.public, keys.secret]), flush=True)
publisher.wait_adopted(1, 100)
sys.stdin.read()
publisher.close()
"""
ADOPT = """
import asyncio, json, sys, numpy as np
from actors.weights.adopter import WeightAdopter
from actors.weights.memory import MemoryWeights
from protocol.config import WeightSettings
from protocol.sockets import Keys
from protocol.weights.manifest import TensorSpec
endpoint, public, secret = json.loads(sys.argv[1])
holder = MemoryWeights([TensorSpec("w", "float32", (300, 40))])
keys = Keys(public=public, secret=secret)
adopter = WeightAdopter(holder, "g0", endpoint, WeightSettings(bucket_mib=1), tied={}, keys=keys)
async def adopt():
    while adopter.version < 1:
        await adopter.poll()
    await adopter.poll()  # which tells the publisher
    segment = adopter._receiver.segment
    await adopter.close()
    return segment is not None
print("over the socket" if asyncio.run(adopt()) else "through shared memory", adopter.num_refetched)
"""


@pytest.mark.parametrize(("publisher", "way"), [(0, "over the socket 0\n"), (1, "through shared memory 0\n")])
def test_weights_reach_a_host_of_the_same_boot_id_that_has_another_shared_memory(network, publisher, way):
    there, adopting = network.hosts[publisher], network.hosts[1]
    publishing = there.start(
        sys.executable, "-c", PUBLISH, there.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    address = publishing.stdout.readline()
    assert adopting.run(sys.executable, "-c", ADOPT, address, timeout_s=120) == way
    publishing.communicate(timeout=60)
    assert not [name for name in there.left() if "pods" in name]


RANK = """
import sys, psutil
from cluster.security.listeners import Listener, protection
from learner.ranks.group import RankGroup
from protocol.sockets import Keys
rank, master = int(sys.argv[1]), sys.argv[2]
keys = Keys(public=sys.argv[3], secret=sys.argv[4])
group = RankGroup(rank, 2, master, 7007, sequence_parallel=2, start_timeout_s=100, timeout_s=100, keys=keys)
group.barrier()
listening = psutil.Process().net_connections("tcp")
print(*sorted({c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN}), end=" ")
print(protection(Listener("the store", master, 7007)), flush=True)
group.barrier()
group.close()
"""


@pytest.mark.parametrize(
    ("second", "addresses", "protected"),
    [(0, ["127.0.0.1"] * 2, "loopback"), (1, ["10.77.0.1", "10.77.0.2"], "curve")],
)
def test_ranks_listen_only_where_the_others_are_and_meet_among_themselves(network, second, addresses, protected):
    """The name of a host points to the address under which others reach it."""
    keys = Keys.generate()
    hosts = network.hosts[0], network.hosts[second]
    ranks = [
        host.start(
            sys.executable, "-c", RANK, str(rank), addresses[0], keys.public, keys.secret, stdout=subprocess.PIPE
        )
        for rank, host in enumerate(hosts)
    ]
    said = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert said == [f"{address} {protected}" for address in addresses]
