"""Each place a run starts in works, or is refused in one line that says what to change."""

import os
import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from cluster import run_files, surroundings
from cluster.surroundings import allow_open_files, check_directories, check_shared_memory, put_foreign_ray_aside
from protocol.config import Settings
from protocol.errors import ConfigError

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    """Another test's Ray in this process has left variables of its own."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)


def test_this_place_works():
    check_directories(Settings())
    check_shared_memory(Settings())


def test_a_long_temporary_directory_is_refused_by_its_length(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp/" + "x" * 60)
    with pytest.raises(ConfigError, match=r"TMPDIR /tmp/x+: .* at most \d\d characters"):
        check_directories(Settings())


def test_the_longest_allowed_socket_can_be_bound(tmp_path):
    assert len("/tmp" + surroundings._LONGEST_BELOW) <= 107
    with pytest.raises(ConfigError):
        surroundings._check_temporary("/" + "y" * (107 - len(surroundings._LONGEST_BELOW)))
    surroundings._check_temporary("/" + "y" * (106 - len(surroundings._LONGEST_BELOW)))


def test_nobody_without_a_home(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(ConfigError, match="set HOME"):
        check_directories(Settings())


def test_a_small_shared_memory_is_refused_unless_weights_go_another_way(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 << 20, 64 << 20, 0))
    with pytest.raises(ConfigError, match=r"--shm-size of a container\), or send weights with --weights.channel zmq"):
        check_shared_memory(Settings())
    check_shared_memory(Settings.model_validate({"weights": {"channel": "zmq"}}))
    check_shared_memory(Settings(phase="eval"))


def test_a_missing_shared_memory_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(surroundings, "SHARED_MEMORY", tmp_path / "none")
    with pytest.raises(ConfigError, match=r"none has 0.00 GiB free"):
        check_shared_memory(Settings())


def test_another_rays_address_is_put_aside_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert put_foreign_ray_aside(Settings(ray_address="10.0.0.1:6379")) == []
    assert os.environ["RAY_ADDRESS"] == "10.0.0.1:6379"
    assert put_foreign_ray_aside(Settings()) == ["RAY_ADDRESS"]
    assert "RAY_ADDRESS" not in os.environ


@pytest.mark.parametrize(
    ("name", "value"),
    [  # with each of them a Ray of one's own did not start, or was another one than was asked for
        ("RAY_REDIS_ADDRESS", "127.0.0.1:1"),
        ("RAY_OVERRIDE_RESOURCES", '{"CPU": 7}'),
        ("RAY_RUNTIME_ENV_HOOK", "no.such.hook"),
        ("RAY_CLIENT_MODE", "1"),
        ("RAY_USE_TLS", "1"),
    ],
)
def test_what_a_pod_or_a_job_of_another_ray_sets_is_put_aside(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert put_foreign_ray_aside(Settings()) == [name]
    assert name not in os.environ


def test_a_ray_that_other_hosts_reach_keeps_its_protection(monkeypatch):
    monkeypatch.setenv("RAY_USE_TLS", "1")
    assert put_foreign_ray_aside(Settings(network={"bind": "0.0.0.0"})) == []
    assert os.environ["RAY_USE_TLS"] == "1"


def test_no_place_for_temporary_files(monkeypatch):
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp']")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    with pytest.raises(ConfigError, match=r"temporary files.*set TMPDIR"):
        check_directories(Settings())


def test_an_owner_is_known_by_its_start_ticks_and_boot_whatever_the_clock_says(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = run_files.claim(tmp_path)
    monkeypatch.setattr("psutil.boot_time", lambda: 0.0)  # the clock was stepped
    assert run_files.owner_lives(files.private)
    owner = files.private / "owner"
    pid, ticks, boot = owner.read_text().split()
    owner.write_text(f"{pid} {int(ticks) - 1} {boot}")
    assert not run_files.owner_lives(files.private)
    owner.write_text(f"{pid} {ticks} another-boot")
    assert not run_files.owner_lives(files.private)
    run_files.release(files)


def test_files_that_may_be_open_are_raised_as_far_as_a_run_needs(monkeypatch):
    raised = []
    monkeypatch.setattr(surroundings.resource, "getrlimit", lambda what: (1024, 1 << 20))
    monkeypatch.setattr(surroundings.resource, "setrlimit", lambda what, limits: raised.append(limits))
    allow_open_files(Settings(num_actors=8))
    assert not raised
    allow_open_files(Settings(num_actors=1000))
    assert raised == [(6512, 1 << 20)]


def test_a_limit_that_cannot_be_raised_is_refused_with_its_numbers(monkeypatch):
    monkeypatch.setattr(surroundings.resource, "getrlimit", lambda what: (1024, 4096))
    with pytest.raises(
        ConfigError, match=r"4096 files may be open at once, and 1000 episodes may need 6512: .*--num-actors"
    ):
        allow_open_files(Settings(num_actors=1000))
    allow_open_files(Settings(num_actors=1000, ray_address="10.0.0.1:6379"))


def test_a_current_directory_that_was_removed(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="the current directory cannot be used"):
        check_directories(Settings())


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/cache")):
        with pytest.raises(ConfigError, match=f"--tasks.cache-dir {place}: trees of tasks cannot be kept there"):
            check_directories(Settings(tasks={"cache_dir": place}))
