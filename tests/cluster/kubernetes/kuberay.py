"""The part of KubeRay's `ray.io/v1` that is used here, written by hand: its CRDs are in no package registry.

After the types of `apis/ray/v1/raycluster_types.go` and `rayjob_types.go` of github.com/ray-project/kuberay,
and its API reference (ray-project.github.io/kuberay/reference/api), version 1.5. A field that is not listed is wrong.
"""

from __future__ import annotations

from typing import Any

import jsonschema


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_WORDS = {"type": "object", "additionalProperties": {"type": "string"}}
_COUNT = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
_BOOLEAN, _STRING = {"type": "boolean"}, {"type": "string"}
_TEMPLATE = _object(["spec"], metadata={"type": "object"}, spec={"type": "object"})  # Kubernetes' own: held by itself
_GROUP = {"rayStartParams": _WORDS, "labels": _WORDS, "resources": _WORDS, "template": _TEMPLATE}
_CLUSTER = _object(
    ["headGroupSpec"],
    rayVersion=_STRING,
    enableInTreeAutoscaling=_BOOLEAN,
    suspend=_BOOLEAN,
    authOptions=_object([], mode={"enum": ["disabled", "token"]}),
    headGroupSpec=_object(
        ["template"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        enableIngress=_BOOLEAN,
        **_GROUP,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _object(
            ["groupName", "template", "minReplicas", "maxReplicas"],
            groupName=_STRING,
            replicas=_COUNT,
            minReplicas=_COUNT,
            maxReplicas=_COUNT,
            numOfHosts=_COUNT,
            **_GROUP,
        ),
    },
)
_JOB = _object(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    shutdownAfterJobFinishes=_BOOLEAN,
    ttlSecondsAfterFinished=_COUNT,
    activeDeadlineSeconds=_COUNT,
    backoffLimit=_COUNT,
    suspend=_BOOLEAN,
    runtimeEnvYAML=_STRING,
    rayClusterSpec=_CLUSTER,
)
_SPECS = {"RayCluster": _CLUSTER, "RayJob": _JOB}


def complaints(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a RayCluster or RayJob, its pods' templates aside."""
    metadata = _object(["name"], name={"type": "string", "maxLength": 50}, labels=_WORDS)
    schema = _object(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"enum": list(_SPECS)},
        metadata=metadata,
        spec=_SPECS.get(manifest.get("kind", ""), False),
    )
    found = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{error.json_path}: {error.message[:300]}" for error in found]


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The cluster of a RayCluster or RayJob."""
    spec: dict[str, Any] = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


def templates_of(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Its pods' templates by group."""
    cluster = cluster_of(manifest)
    workers = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **workers}
