"""`[sandbox.kubernetes]`: sandboxes as pods."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from protocol.section import Seconds, Section, Share

_LABEL = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


class KubernetesSettings(Section):
    """Sandboxes as pods (`sandbox.backend = "kubernetes"`)."""

    namespace: str = ""
    """Where the pods are made (empty: that of the pod that this runs in, or of the kubeconfig)."""
    kubeconfig: Path | None = None
    """File that says how the API server is reached (default: the pod's own account, or else ~/.kube/config)."""
    context: str = ""
    """Its context (empty: its current one)."""
    image: str = ""
    """Image of sandboxes whose tasks name none: with bash, python3 and git. Empty: such tasks are refused."""
    pull_secrets: list[str] = []
    """Secrets of the namespace with which images are pulled."""
    node_selector: list[str] = []
    """Labels of the nodes that may hold sandboxes, each `name=value`."""
    tolerations: list[str] = []
    """Keys of taints that sandboxes tolerate."""
    runtime_class: str = ""
    """RuntimeClass of the pods, for a stronger wall (gVisor, Kata); empty: the cluster's own."""
    user_namespaces: bool = False
    """Map the pod's root to nobody on its node (`hostUsers: false`), where nodes allow it."""
    cpu_request: Share = 0.25
    """Part of `sandbox.cpus` that the scheduler keeps free for a sandbox; memory is kept free whole."""
    start_s: Seconds = 600
    """Most that a pod may take to start, its image's pull and new nodes included."""
    max_life_s: Annotated[int, Field(ge=60)] = 86_400
    """After this the cluster ends a pod whatever happens; longer than any episode with its judgement."""

    @field_validator("node_selector")
    @classmethod
    def _name_and_value(cls, labels: list[str]) -> list[str]:
        for label in labels:
            name, separator, value = label.partition("=")
            if not separator or not _LABEL.fullmatch(name) or (value and not _LABEL.fullmatch(value)):
                raise ValueError(f"expected `name=value` of a node's label, got {label!r}")
        return labels
