"""The chart in configs/kubernetes as Helm renders it: each object is one, and no right is more than is asked for."""

from __future__ import annotations

import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.command_line.cli import parse
from sandbox.kubernetes.backend import RIGHTS
from sandbox.kubernetes.cluster import Right
from sandbox.kubernetes.pod import policy_manifest
from tests.cluster.kubernetes import kuberay
from tests.sandbox.kubernetes.schemas import complaints

helm_python = pytest.importorskip("helm_python", reason="Helm as a library is there for Linux on x86-64")

ROOT = Path(__file__).parents[3]
CHART = ROOT / "configs" / "kubernetes" / "longhaul"
JOB = {"job": {"enabled": True}}
VALUES: dict[str, dict[str, Any]] = {
    "cluster": {},
    "job": JOB,
    "namespaces": {"sandboxes": {"backend": "namespace"}},
    "everything": {
        **JOB,
        "pullSecrets": ["registry"],
        "head": {"nodeSelector": {"pool": "head"}, "tolerations": [{"key": "head", "operator": "Exists"}]},
        "storage": {"className": "fast", "url": "s3://bucket/a run"},
    },
}


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of the chart."""
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="longhaul", namespace="longhaul")
    return [item for name in sorted(texts) for item in yaml.safe_load_all(texts[name]) if item]


def of_kind(objects: list[dict[str, Any]], *kinds: str) -> dict[str, Any]:
    [found] = [item for item in objects if item["kind"] in kinds]
    return found


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_every_object_is_one(values: dict[str, Any]) -> None:
    for item in rendered(values):
        if item["apiVersion"] == "ray.io/v1":
            assert not kuberay.complaints(item)
            for name, template in kuberay.templates_of(item).items():
                pod = {"apiVersion": "v1", "kind": "Pod", **template}
                assert not complaints(pod), name
        else:
            assert not complaints(item), item["metadata"]["name"]
    assert not [said for said in helm_python.lint(str(CHART))["messages"] if said["severity"] > 1]


def test_what_is_no_object_is_noticed() -> None:
    cluster = of_kind(rendered({}), "RayCluster")
    cluster["spec"]["headGroupSpec"]["replicas"] = 2
    assert kuberay.complaints(cluster)
    cluster = of_kind(rendered({}), "RayCluster")
    del cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"]
    assert kuberay.complaints(cluster)
    claim = of_kind(rendered({}), "PersistentVolumeClaim")
    claim["spec"]["size"] = "1Ti"
    assert complaints(claim)


@pytest.mark.parametrize("name", ["raycluster", "rayjob"])
def test_the_plain_manifests_are_the_chart_s(name: str) -> None:
    """`helm template longhaul configs/kubernetes/longhaul -n longhaul`, for the job with `--set job.enabled=true`."""
    plain = list(yaml.safe_load_all((CHART.parent / f"{name}.yaml").read_text()))
    wanted = rendered(JOB if name == "rayjob" else {})

    def key(item: dict[str, Any]) -> tuple[str, str]:
        return item["kind"], item["metadata"]["name"]

    assert sorted(plain, key=key) == sorted(wanted, key=key)


def test_ray_is_the_one_of_this_package() -> None:
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    cluster = kuberay.cluster_of(of_kind(rendered({}), "RayCluster"))
    assert f"ray[default]=={cluster['rayVersion']}" in dependencies


def test_the_policy_is_the_backend_s() -> None:
    policies = [item for item in rendered({}) if item["kind"] == "NetworkPolicy"]
    assert policy_manifest() in policies
    assert len([item for item in rendered(VALUES["namespaces"]) if item["kind"] == "NetworkPolicy"]) == 1


def test_who_may_make_pods() -> None:
    """The launcher and the processes that play episodes, and they nothing besides."""
    objects = rendered({})
    role = of_kind(objects, "Role")
    given = {
        Right(verb, *resource.partition("/")[::2], group=group, name=name)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }
    assert given == set(RIGHTS)
    binding = of_kind(objects, "RoleBinding")
    holders = {
        name
        for name, template in kuberay.templates_of(of_kind(objects, "RayCluster")).items()
        if template["spec"]["serviceAccountName"] == binding["subjects"][0]["name"]
        and template["spec"]["automountServiceAccountToken"]
    }
    assert holders == {"head", "sandboxes"}
    inside = rendered(VALUES["namespaces"])
    assert not [item for item in inside if item["kind"] in ("Role", "RoleBinding")]
    for template in kuberay.templates_of(of_kind(inside, "RayCluster")).values():
        assert template["spec"]["automountServiceAccountToken"] is False


def test_the_command_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its flags are settings, whatever a URL holds, and it goes on where a former cluster ended."""
    command = of_kind(rendered(VALUES["everything"]), "RayJob")["spec"]["entrypoint"]
    first, resume, rest = command.replace("$(", "\0").replace(")", "\0").split("\0")
    assert resume == "test -e /runs/longhaul/settings.json && echo --resume auto"
    words = [word.replace("$RAY_ADDRESS", "10.0.0.1:6379") for word in shlex.split(first + rest)]
    assert words[:2] == ["longhaul", "run"]
    monkeypatch.chdir(ROOT)  # whose checkout is in the image
    settings, _ = parse(words[2:])
    assert settings.ray_address == "10.0.0.1:6379" and settings.sandbox.backend == "kubernetes"
    assert settings.network.trusted and settings.hosts.sandbox_label == "pool=sandbox"
    assert settings.checkpoint.url == "s3://bucket/a run"
    sandboxes = kuberay.cluster_of(of_kind(rendered({}), "RayCluster"))["workerGroupSpecs"][1]
    assert [f"{key}={value}" for key, value in sandboxes["labels"].items()] == [settings.hosts.sandbox_label]


def test_a_backend_that_is_none_is_refused() -> None:
    with pytest.raises(helm_python.HelmError, match="expected kubernetes or namespace, got docker"):
        rendered({"sandboxes": {"backend": "docker"}})


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_nobody_is_root(values: dict[str, Any]) -> None:
    """Files of one run directory are one user's; and root without CAP_SYS_ADMIN may make no namespace."""
    for template in kuberay.templates_of(of_kind(rendered(values), "RayCluster", "RayJob")).values():
        user = template["spec"]["securityContext"]
        assert user == {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
        [container] = template["spec"]["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False


def test_what_namespaces_in_a_pod_need() -> None:
    templates = kuberay.templates_of(of_kind(rendered(VALUES["namespaces"]), "RayCluster"))
    for name, template in templates.items():
        security = template["spec"]["containers"][0]["securityContext"]
        if name == "gpus":
            assert security["seccompProfile"] == {"type": "RuntimeDefault"} and "hostUsers" not in template["spec"]
            continue
        assert template["spec"]["hostUsers"] is False and security["procMount"] == "Unmasked"
        assert security["seccompProfile"] == security["appArmorProfile"] == {"type": "Unconfined"}
