"""Ray itself: what it listens on, what it shows, and what is left when it stops."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from cluster import processes, run_files
from cluster.placement import Cluster
from cluster.reporting.ray_metrics import RaySink, read_endpoints
from cluster.supervision.part import error_line
from protocol.config import Settings

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    settings = Settings(network={"dashboard_port": 0}, run_dir=tmp_path_factory.mktemp("run"))
    files = run_files.claim(run_files.choose_directory(settings))
    cluster = Cluster(settings, files)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    from ray._private import ray_constants

    with (
        pytest.MonkeyPatch.context() as patch
    ):  # other tests of this process imported Ray before its environment was set
        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
        cluster.start()
    cluster.reserve()
    yield cluster
    cluster.stop()
    assert read_endpoints(files.directory) == []
    run_files.release(files)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    assert not files.private.exists()


def test_nothing_listens_beyond_loopback(cluster):
    mine = {os.getpid()} | {child.pid for child in psutil.Process().children(recursive=True)}
    listening = [c.laddr.ip for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in mine]
    assert listening
    assert {ip for ip in listening if ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")} == set()


def in_dashboard(cluster, name):
    """Of an actor: what the column Repr of Ray's dashboard shows."""
    from ray.util.state import list_actors

    actors = list_actors(cluster.dashboard_url, detail=True, filters=[("name", "=", name)])
    return actors[0].repr_name if actors else ""


def test_a_process_is_named_and_writes_its_own_log(cluster):
    import ray  # Ray reads its environment when it is imported: after `start`

    handle = cluster.place(processes.Learner, "learner-0", "learner-7")
    host, *_ = ray.get(handle.reserve.remote(), timeout=60)
    assert host == "127.0.0.1"
    assert ray.get_actor("learner-7", namespace=f"longhaul-{cluster.files.name}") is not None
    assert (cluster.files.logs / "learner-0.log").exists()
    assert "learner ranks 0 to 1, 1 generator" in (cluster.files.directory / "placement.txt").read_text()
    deadline = time.monotonic() + 60
    while not (shown := in_dashboard(cluster, "learner-7")):
        assert time.monotonic() < deadline, "the actor is not in the dashboard"
        time.sleep(0.5)
    assert re.fullmatch(r"learner-0, trains with DeepSpeed, since [\d-]{10} [\d:]{8} UTC", shown)
    with pytest.raises(ray.exceptions.RayTaskError) as caught:
        ray.get(handle.stop.remote(), timeout=60)
    assert error_line(caught.value).startswith("AttributeError: ")
    ray.kill(handle)


def test_metrics_are_in_the_prometheus_endpoint(cluster):
    RaySink("run").write("step", {"reward_mean": 0.25}, step=1)
    [(host, port)] = read_endpoints(cluster.files.directory)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        page = urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=60).read().decode()
        if re.search(r'^ray_longhaul_step_reward_mean\{.*run="run".*\} 0\.25$', page, re.MULTILINE):
            return
        time.sleep(0.5)
    pytest.fail("the gauge did not appear within 60 s")


def test_ray_of_a_killed_launcher_is_reaped_by_the_next_start(tmp_path):
    script = (
        "import sys, time; from cluster import run_files; from cluster.placement import Cluster\n"
        "from protocol.config import Settings\n"
        f"settings = Settings(network=dict(dashboard_port=0), run_dir={str(tmp_path)!r})\n"
        "cluster = Cluster(settings, run_files.claim(run_files.choose_directory(settings)))\n"
        "cluster.start(); print('up', flush=True); time.sleep(600)"
    )
    launcher = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert launcher.stdout.readline() == b"up\n"
    children = psutil.Process(launcher.pid).children(recursive=True)
    assert children
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    launcher.stdout.close()
    for files in run_files.dead_runs():  # what the next start does
        run_files.reap(files)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive
