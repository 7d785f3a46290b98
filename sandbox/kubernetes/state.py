"""What a pod's status means for the sandbox in it: waits, runs, cannot start, or has ended. Pure."""

from __future__ import annotations

import calendar
import time
from typing import Any

from msgspec import Struct

from sandbox.kubernetes.pod import CONTAINER

# A kubelet tries these again for ever; with the same pod it would get the same answer.
_NEVER_STARTS = frozenset(
    (
        "InvalidImageName",
        "ErrImageNeverPull",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "CrashLoopBackOff",
    )
)
_PULLING = frozenset(("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"))
_NO_PULL_HELPS = ("not found", "manifest unknown", "unauthorized", "denied", "does not exist", "forbidden", "no match")
_LOST_PLACE = frozenset(("Evicted", "NodeLost", "NodeShutdown", "Terminated", "Preempting", "Shutdown", "NodeAffinity"))
_MOST = 500  # characters of a reason


class State(Struct, frozen=True, kw_only=True):
    """Of one pod. `problem` is what holds it up, and final where nothing but another pod helps."""

    runs: bool = False
    ended: bool = False
    problem: str = ""
    kind: str = ""  # of the `SandboxError` that the problem is
    final: bool = False


def state_of(pod: dict[str, Any]) -> State:
    """The state that a pod's status tells."""
    status = pod.get("status") or {}
    phase = status.get("phase", "")
    container = status_of_container(pod)
    of_container = container.get("state") or {}
    if phase in ("Failed", "Succeeded") or "terminated" in of_container:
        return _ended(status, of_container.get("terminated") or {})
    if pod.get("metadata", {}).get("deletionTimestamp"):
        return State(ended=True, problem="its pod is being removed by somebody else", kind="evicted", final=True)
    if "running" in of_container:
        return State(runs=True)
    waiting = of_container.get("waiting") or {}
    reason, said = str(waiting.get("reason", "")), _short(waiting.get("message", ""))
    if reason in _PULLING or reason in ("InvalidImageName", "ErrImageNeverPull"):
        hopeless = reason in _NEVER_STARTS or any(words in said.lower() for words in _NO_PULL_HELPS)
        image = container.get("image", "")
        return State(problem=f"image {image} cannot be pulled: {reason}: {said}", kind="image", final=hopeless)
    if reason in _NEVER_STARTS:
        return State(problem=f"{reason}: {said}", kind="start", final=True)
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            said = f"{condition.get('reason', '')}: {_short(condition.get('message', ''))}"
            return State(problem=f"no node has room for it ({said})", kind="start")
    return State(problem=reason or "nothing was said of it yet", kind="start")


def status_of_container(pod: dict[str, Any]) -> dict[str, Any]:
    """What is said of the sandbox's own container: a cluster may have put others beside it. Empty: nothing."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return next((status for status in statuses if status.get("name") == CONTAINER), {})


def gone() -> State:
    """Of a pod that is not there any more."""
    return State(ended=True, problem="its pod was removed by somebody else", kind="evicted", final=True)


def ended_before(pod: dict[str, Any], seconds: float) -> bool:
    """Whether a pod ended, or was made and never ran, at least so long ago by the cluster's clock."""
    status = pod.get("status") or {}
    if status.get("phase") not in ("Failed", "Succeeded"):
        return False
    finished = ((status_of_container(pod).get("state") or {}).get("terminated") or {}).get("finishedAt")
    moment = finished or pod.get("metadata", {}).get("creationTimestamp") or ""
    try:
        since = calendar.timegm(time.strptime(moment[:19], "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return False
    return time.time() - since >= seconds


def _ended(status: dict[str, Any], terminated: dict[str, Any]) -> State:
    """Never with the container's own last message, which is whatever ran inside's to write."""
    reason = str(status.get("reason") or terminated.get("reason") or "no reason")
    said = _short(status.get("message", ""))
    text = f"its pod ended: {reason}, exit status {terminated.get('exitCode', '?')}" + (f": {said}" if said else "")
    if reason == "OOMKilled":
        text += (
            "; its kubelet kills whole containers that have too much memory: raise sandbox.memory_mib, or set"
            " singleProcessOOMKill in the kubelet's configuration"
        )
    elif reason == "DeadlineExceeded":
        text += "; sandbox.kubernetes.max_life_s is over"
    return State(ended=True, problem=text, kind="evicted" if reason in _LOST_PLACE else "died", final=True)


def _short(text: Any) -> str:
    return " ".join(str(text).split())[:_MOST]
