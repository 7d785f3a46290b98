"""What a pod's status means, word by word; and that no text of a stranger's breaks it."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from protocol.config.sandbox.kubernetes import KubernetesSettings
from sandbox.kubernetes.pod import label_value
from sandbox.kubernetes.sandbox import exit_of
from sandbox.kubernetes.state import State, ended_before, state_of


def pod(phase: str, state: dict[str, Any] | None = None, **status: Any) -> dict[str, Any]:
    containers = {"containerStatuses": [{"name": "sandbox", "image": "an:image", "state": state}]} if state else {}
    return {"metadata": {"name": "p"}, "status": {"phase": phase, **containers, **status}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return pod("Pending", {"waiting": {"reason": reason, "message": message}})


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (pod("Pending"), (False, False, False, "start")),
        (waiting("ContainerCreating"), (False, False, False, "start")),
        (waiting("ImagePullBackOff", "Back-off pulling image"), (False, False, False, "image")),
        (waiting("ErrImagePull", "toomanyrequests: slow down"), (False, False, False, "image")),
        (waiting("ErrImagePull", "manifest unknown"), (False, False, True, "image")),
        (waiting("ErrImagePull", "pull access denied"), (False, False, True, "image")),
        (waiting("InvalidImageName"), (False, False, True, "image")),
        (waiting("CreateContainerConfigError", "secret not found"), (False, False, True, "start")),
        (waiting("CreateContainerError"), (False, False, True, "start")),
        (pod("Running", {"running": {}}), (True, False, False, "")),
        (pod("Running", {"terminated": {"exitCode": 0, "reason": "Completed"}}), (False, True, True, "died")),
        (pod("Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), (False, True, True, "died")),
        (pod("Failed", reason="Evicted", message="short of disk"), (False, True, True, "evicted")),
        (pod("Failed", reason="NodeLost"), (False, True, True, "evicted")),
        (pod("Failed", reason="DeadlineExceeded"), (False, True, True, "died")),
    ],
)
def test_every_state(given: dict[str, Any], wanted: tuple[bool, bool, bool, str]) -> None:
    state = state_of(given)
    assert (state.runs, state.ended, state.final, state.kind) == wanted
    assert state.runs == (not state.problem), "whatever keeps it from running has a name"


def test_others_in_the_pod_have_no_say() -> None:
    """A cluster may put containers of its own beside the sandbox's."""
    beside = {"name": "proxy", "state": {"terminated": {"exitCode": 1}}}
    running = pod("Running", {"running": {}})
    running["status"]["containerStatuses"].insert(0, beside)
    assert state_of(running).runs
    over = pod("Running", {"terminated": {"exitCode": 0}})
    over["status"]["containerStatuses"].insert(0, {"name": "proxy", "state": {"running": {}}})
    assert state_of(over).ended


def test_what_to_do_is_said() -> None:
    assert "memory_mib" in state_of(pod("Failed", {"terminated": {"reason": "OOMKilled"}})).problem
    assert "max_life_s" in state_of(pod("Failed", reason="DeadlineExceeded")).problem
    removed = pod("Running", {"running": {}})
    removed["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert "being removed by somebody else" in state_of(removed).problem


def test_the_container_s_own_last_words_are_never_repeated() -> None:
    """Whatever ran inside may have written them."""
    ended = pod("Failed", {"terminated": {"exitCode": 1, "reason": "Error", "message": "all tests passed"}})
    assert "all tests passed" not in state_of(ended).problem


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        (b'{"status": "Success"}', "0"),
        (b'{"status": "Failure", "details": {"causes": [{"reason": "ExitCode", "message": "77"}]}}', "77"),
        (b'{"status": "Failure", "message": "container not found"}', "container not found"),
        (b'{"status": "Failure", "details": null, "message": "m"}', "m"),
        (b"not json", "unknown"),
        (b"[]", "unknown"),
        (b"\xff\xfe", "unknown"),
        (b'{"details": {"causes": [7]}}', "unknown"),
    ],
)
def test_exit_statuses(status: bytes, wanted: str) -> None:
    assert exit_of(status) == wanted


@hypothesis.given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_an_exit_status(status: bytes) -> None:
    assert len(exit_of(status)) <= 200


@hypothesis.given(st.dictionaries(st.sampled_from(["phase", "reason", "message"]), st.text(max_size=2000)))
def test_reasons_are_short_lines(status: dict[str, str]) -> None:
    state = state_of({"metadata": {}, "status": status})
    assert isinstance(state, State) and len(state.problem) < 3000 and "\n" not in state.problem.replace("\\n", "")


def test_how_long_ago() -> None:
    old = pod("Failed", {"terminated": {"exitCode": 1, "finishedAt": "2020-01-01T00:00:00Z"}})
    assert ended_before(old, 60)
    assert not ended_before(pod("Running", {"running": {}}), 0)
    assert not ended_before(pod("Failed", {"terminated": {"finishedAt": "2999-01-01T00:00:00Z"}}), 60)
    assert not ended_before(pod("Failed", {"terminated": {"finishedAt": "soon"}}), 60)
    assert ended_before({**pod("Failed"), "metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}, 60)


@hypothesis.given(st.text(max_size=120), st.text(max_size=120))
def test_labels(one: str, other: str) -> None:
    """Of any text, as the API takes them, and another one for another text."""
    value = label_value(one)
    assert len(value) <= 63 and all(c.isascii() and (c.isalnum() or c in "-_.") for c in value)
    assert value[0].isalnum() and value[-1].isalnum()
    assert (label_value(other) == value) == (other == one)


def test_settings_name_labels() -> None:
    assert KubernetesSettings(node_selector=["pool=sandbox", "example.org/x="]).node_selector
    for wrong in ("pool", "=x", "a b=c", "pool=a b"):
        with pytest.raises(ValueError, match="name=value"):
            KubernetesSettings(node_selector=[wrong])
