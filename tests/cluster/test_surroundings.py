"""Each place a run starts in works, or is refused in one line that says what to change."""

import os
import shutil
import tempfile
from collections import namedtuple

import pytest

from cluster import run_files, surroundings
from cluster.surroundings import check_directories, check_shared_memory, put_foreign_ray_aside
from protocol.config import Settings
from protocol.errors import ConfigError

Usage = namedtuple("Usage", "total used free")


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
