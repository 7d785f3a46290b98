"""What is known of registries: names, logins in whatever way they are kept, and what a refusal means."""

from __future__ import annotations

import base64
import json
import logging
import pwd
from pathlib import Path
from typing import Any

import pytest

from sandbox.docker.registry import credentials, full_name, is_limited, named_wait_s, names_to_try, read_mirrors

DIGEST = f"@sha256:{'0' * 64}"
ME = {"username": "me", "password": "s3cret"}
TOKEN = base64.b64encode(b"me:s3cret").decode()


@pytest.fixture
def login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that `docker login` writes, not there yet."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path / "config.json"


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("python:3", "docker.io/library/python:3"),
        ("corner/shop", "docker.io/corner/shop"),
        ("docker.io/python:3", "docker.io/library/python:3"),
        ("docker.io/library/python:3", "docker.io/library/python:3"),
        ("index.docker.io/corner/shop:1", "docker.io/corner/shop:1"),
        ("index.docker.io/python", "docker.io/library/python"),
        (f"python{DIGEST}", f"docker.io/library/python{DIGEST}"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        ("localhost/a", "localhost/a"),
        (f"ghcr.io/a/b/c:1{DIGEST}", f"ghcr.io/a/b/c:1{DIGEST}"),
    ],
)
def test_names_are_what_daemons_take_them_for(image: str, full: str) -> None:
    assert full_name(image) == full


def test_a_mirror_is_asked_for_whatever_way_its_registry_is_written() -> None:
    for setting in ("docker.io=m/hub", "index.docker.io=m/hub/"):
        mirrors = read_mirrors([setting])
        for image in ("python:3", "docker.io/python:3", "index.docker.io/library/python:3"):
            assert list(names_to_try(image, mirrors)) == ["m/hub/library/python:3", image]
    assert list(names_to_try("ghcr.io/a/b:1", {"docker.io": "m"})) == ["ghcr.io/a/b:1"]


@pytest.mark.parametrize(
    "server",
    [
        *("ghcr.io", "https://ghcr.io", "https://ghcr.io/", "http://ghcr.io", "https://ghcr.io/v2/", "ghcr.io/v1"),
        *("https://index.docker.io/v1/", "https://index.docker.io/v2/", "docker.io", "https://registry-1.docker.io/v2"),
    ],
)
def test_a_login_counts_under_any_way_of_writing_its_registry(login: Path, server: str) -> None:
    login.write_text(json.dumps({"auths": {server: {"auth": TOKEN}}}))
    ours, other = ("ghcr.io/a/b:1", "python:3") if "ghcr" in server else ("python:3", "ghcr.io/a/b:1")
    assert credentials(ours) == ME
    assert credentials(other) is None


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"username": "me", "password": "s3cret"}, ME),
        ({"auth": "", "username": "me", "password": "s3cret"}, ME),
        ({"auth": base64.b64encode(b"me:s3cret\0\0").decode()}, ME),
        ({"auth": TOKEN, "identitytoken": "t"}, {"identitytoken": "t"}),
        ({"auth": base64.b64encode(b"\xff:x").decode()}, None),
        ({"auth": 7}, None),
        ({"username": "me", "password": 7}, None),
        ({"auth": base64.b64encode(b"nobody").decode()}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_login_is_read_in_every_form(login: Path, entry: Any, expected: dict[str, str] | None) -> None:
    login.write_text(json.dumps({"auths": {"ghcr.io": entry}, "credHelpers": {"ghcr.io": {}}, "credsStore": 3}))
    assert credentials("ghcr.io/a/b") == expected


def test_without_a_home_nobody_is_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    assert credentials("ghcr.io/a/b") is None


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    helper = tmp_path / "docker-credential-corner"
    helper.touch(0o755)
    return helper


def test_a_helper_is_asked_once_and_for_the_name_that_a_login_has(login: Path, helper: Path) -> None:
    helper.write_text(f"#!/bin/sh\ncat >>{login.parent}/asked; echo >>{login.parent}/asked; echo oops >&2; exit 1\n")
    login.write_text(json.dumps({"credsStore": "corner", "auths": {"https://index.docker.io/v1/": {}}}))
    assert credentials("python:3") is None
    assert (login.parent / "asked").read_text() == "https://index.docker.io/v1/\n"


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("echo 'error getting credentials: the keychain is locked'; exit 1", "the keychain is locked"),
        ("echo no display >&2; exit 1", "no display"),
        ("echo not JSON", "JSONDecodeError"),
        ("echo '[]'", "TypeError"),
        ("printf '\\377'", "JSONDecodeError"),
        ("""echo '{"Username": "me"}'""", "Secret"),
    ],
)
def test_a_helper_that_fails_is_named(
    login: Path, helper: Path, caplog: pytest.LogCaptureFixture, does: str, said: str
) -> None:
    helper.write_text(f"#!/bin/sh\n{does}\n")
    login.write_text(json.dumps({"credHelpers": {"ghcr.io": "corner"}}))
    with caplog.at_level(logging.WARNING):
        assert credentials("ghcr.io/a/b") is None
    assert "docker-credential-corner" in caplog.text and "ghcr.io" in caplog.text and said in caplog.text


def test_a_helper_that_is_not_there_is_named_and_one_that_keeps_no_login_is_not(
    login: Path, helper: Path, caplog: pytest.LogCaptureFixture
) -> None:
    helper.write_text("#!/bin/sh\necho credentials not found in native keychain\nexit 1\n")
    login.write_text(json.dumps({"credsStore": "corner"}))
    assert credentials("ghcr.io/a/b") is None
    assert not caplog.text
    login.write_text(json.dumps({"credsStore": "nowhere", "auths": {"ghcr.io": {"auth": TOKEN}}}))
    assert credentials("ghcr.io/a/b") == ME
    assert "docker-credential-nowhere" in caplog.text


def test_limits_are_told_from_other_refusals_and_the_wait_that_they_name_is_read() -> None:
    assert is_limited(429, "") and is_limited(500, "toomanyrequests: limit")
    assert not is_limited(500, "boom") and not is_limited(404, "manifest for corner/shop:429 not found")
    assert named_wait_s("toomanyrequests: retry-after: 352.12ms, allowed: 44000/minute") == pytest.approx(0.35212)
    assert named_wait_s("Retry-After: 30") == 30
    assert named_wait_s("retry-after: Wed, 21 Oct 2026 07:28:00 GMT") is None
