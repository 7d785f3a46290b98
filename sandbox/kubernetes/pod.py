"""What the API server is told of a new pod, of the policy that keeps it from every network, and how it begins.

A pod's first process waits for the command server's program, which comes over the connection that carries its
conversation from then on (`sandbox/guest/door.c`): one command, begun from outside, unpacks what is copied in, shows
that no network is reached, and stays as the owner's voice.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Any

from protocol.config.sandbox.kubernetes import KubernetesSettings
from sandbox.base import SandboxSpec
from sandbox.docker.config import CAPABILITIES, GUEST, USER_CAPABILITIES

CONTAINER = "sandbox"
PREFIX = "longhaul.dev/"
POLICY = "longhaul-sandboxes"
SANDBOX_LABELS = {f"{PREFIX}sandbox": "true"}
MEMORY_HEADROOM_MIB = 256
"""Between the sandbox's memory, above which the command server ends its commands, and the pod's: where a kubelet ends a
whole container that has too much (cgroup v2), a command must end before."""
DISK_HEADROOM_MIB = 64  # what is copied in comes on top
REACHED, UNTOLD = 77, 78  # exit statuses of `ENTER`

_READY = "/.longhaul-ready"
# First process. Words 0 to 4: the command server's program, its TTL, MiB of memory, work directory, KiB of a file.
BEGIN = f"""
ulimit -c 0; ulimit -f $(($4 * 2))
for name in $(env | sed -n 's/^\\(KUBERNETES_[A-Z0-9_]*\\)=.*/\\1/p'); do unset "$name"; done
n=0
until [ -e {_READY} ]; do
    n=$((n + 1)); [ "$n" -gt 6000 ] && exit 3  # nobody came
    sleep 0.1 || sleep 1
done
rm -f {_READY}
exec "$0" wait "$1" 0 "$2" "$3" no-fallocate
"""
# The owner's voice: word 0 is the program, word 1 how many bytes of tar come first.
ENTER = f"""
head -c "$1" | tar -xf - -C / || exit 79
"$0" reach "$KUBERNETES_SERVICE_HOST" "$KUBERNETES_SERVICE_PORT"
case $? in 0) ;; 1) exit {REACHED} ;; *) exit {UNTOLD} ;; esac
: > {_READY} || exit 79
exec "$0" enter
"""


def pod_manifest(
    spec: SandboxSpec,
    settings: KubernetesSettings,
    namespace: str,
    name: str,
    image: str,
    owner: dict[str, str],
    copied_bytes: int,
) -> dict[str, Any]:
    """The API's `Pod`.

    Args:
        owner: who made it: `owner`, `machine`.
        copied_bytes: what will be copied in, which counts as disk.
    """
    limits = spec.limits
    disk_mib = limits.disk_mib + DISK_HEADROOM_MIB + (copied_bytes >> 20)
    begin = [GUEST, str(max(1, round(spec.ttl_s))), str(limits.memory_mib), spec.workdir, str(limits.disk_mib << 10)]
    container = {
        "name": CONTAINER,
        "image": image,
        "command": ["sh", "-c", BEGIN, *begin],
        "workingDir": "/",
        "env": [
            {"name": key, "value": value}
            for key, value in {"HOME": "/root", "LANG": "C.UTF-8", "PAGER": "cat", "TERM": "dumb"}.items()
        ],
        "resources": {
            "limits": {
                "cpu": f"{round(limits.cpus * 1000)}m",
                "memory": f"{limits.memory_mib + MEMORY_HEADROOM_MIB}Mi",
                "ephemeral-storage": f"{disk_mib}Mi",
            },
            "requests": {
                "cpu": f"{max(1, round(limits.cpus * settings.cpu_request * 1000))}m",
                "memory": f"{limits.memory_mib}Mi",
                "ephemeral-storage": f"{disk_mib}Mi",
            },
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "readOnlyRootFilesystem": False,
            "runAsUser": 0,
            "runAsGroup": 0,
            "capabilities": {"drop": ["ALL"], "add": [*CAPABILITIES, *USER_CAPABILITIES]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    pod: dict[str, Any] = {
        "containers": [container],
        "restartPolicy": "Never",
        "hostname": "sandbox",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "shareProcessNamespace": False,
        "terminationGracePeriodSeconds": 0,
        "activeDeadlineSeconds": settings.max_life_s,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "nodeSelector": dict(label.split("=", 1) for label in settings.node_selector),
        "tolerations": [{"key": key, "operator": "Exists"} for key in settings.tolerations],
        "imagePullSecrets": [{"name": secret} for secret in settings.pull_secrets],
    }
    if settings.user_namespaces:
        pod["hostUsers"] = False
    if settings.runtime_class:
        pod["runtimeClassName"] = settings.runtime_class
    annotations = {**owner, "run": spec.run, "lease": spec.lease}
    metadata: dict[str, Any] = {
        "name": name,
        "labels": labels(spec.run, owner["owner"]),
        "annotations": {PREFIX + key: value for key, value in annotations.items()},
    }
    if holder := _holder(namespace):
        metadata["ownerReferences"] = [holder]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": pod}


def policy_manifest() -> dict[str, Any]:
    """The API's `NetworkPolicy`: nothing in, nothing out."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": POLICY},
        "spec": {
            "podSelector": {"matchLabels": SANDBOX_LABELS},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [],
        },
    }


def denies_all(policy: dict[str, Any]) -> bool:
    """Whether a policy, as the API server holds it, lets nothing in or out of any sandbox."""
    spec = policy.get("spec", {})
    selector = spec.get("podSelector", {})
    wanted = selector.get("matchLabels") or {}
    covers = not selector.get("matchExpressions") and wanted.items() <= SANDBOX_LABELS.items()
    whole = {"Ingress", "Egress"} <= set(spec.get("policyTypes") or ())
    return covers and whole and not spec.get("ingress") and not spec.get("egress")


def labels(run: str, owner: str) -> dict[str, str]:
    """By which its pods are found."""
    return {**SANDBOX_LABELS, f"{PREFIX}run": label_value(run), f"{PREFIX}owner": label_value(owner)}


def label_value(text: str) -> str:
    """A label's value, another one for every text: the text itself where it is one."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", text):
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{re.sub(r'[^A-Za-z0-9]', '-', text)[:40].strip('-') or 'x'}.{digest}"


def _holder(namespace: str) -> dict[str, str] | None:
    """The pod that this process runs in, if its manifest names it: with it the cluster removes what it made."""
    name, uid, home = (os.environ.get(f"LONGHAUL_POD_{word}", "") for word in ("NAME", "UID", "NAMESPACE"))
    if not name or not uid or home != namespace:  # nothing is owned across namespaces
        return None
    return {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}
