"""What a pod is told, and what is said when there is none to be had: every refusal with what to do, nothing left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from protocol.config import SandboxSettings
from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.errors import ConfigError, SandboxError
from sandbox.backends import open_backend
from sandbox.base import Limits, SandboxSpec
from sandbox.kubernetes.backend import KubernetesBackend
from sandbox.kubernetes.pod import POLICY
from sandbox.owners import Owner, parse_owner
from tests.sandbox.kubernetes.fake_cluster import NAMESPACE, FakeCluster

SPEC = SandboxSpec(run="starts", lease="lease")
# What Pod Security `baseline` lets a pod have (kubernetes.io/docs/concepts/security/pod-security-standards).
OF_BASELINE = {
    *("AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "SETFCAP"),
    *("SETGID", "SETPCAP", "SETUID", "SYS_CHROOT"),
}


async def reason(settings: KubernetesSettings) -> str:
    """Why a backend is not available."""
    backend = KubernetesBackend("starts", settings)
    capabilities = await backend.probe()
    await backend.close()
    assert not capabilities.available and capabilities.isolation == "none"
    return capabilities.reason


async def test_nobody_answers(tmp_path: Path) -> None:
    cluster = FakeCluster()
    cluster.port = 9  # discard
    reached = KubernetesSettings(kubeconfig=cluster.kubeconfig(tmp_path))
    assert "does not answer" in await reason(reached)
    with pytest.raises(ConfigError, match=r"kubernetes does not work here: the API server at http://127\.0\.0\.1:9"):
        await open_backend(SandboxSettings(backend="kubernetes", kubernetes=reached), "starts")


async def test_accounts(tmp_path: Path) -> None:
    assert "kubeconfig" in await reason(KubernetesSettings(kubeconfig=tmp_path / "none"))
    (tmp_path / "broken").write_text("clusters: 7\n")
    assert "kubeconfig" in await reason(KubernetesSettings(kubeconfig=tmp_path / "broken"))
    (tmp_path / "empty").write_text("")
    assert "kubeconfig" in await reason(KubernetesSettings(kubeconfig=tmp_path / "empty"))


async def test_what_is_of_docker_is_refused() -> None:
    for settings in (SandboxSettings(image_mirrors=["docker.io=mirror"]), SandboxSettings(image_disk_gib=3)):
        with pytest.raises(ConfigError, match="the nodes pull and keep images"):
            await open_backend(settings.model_copy(update={"backend": "kubernetes"}), "starts")


@pytest.mark.docker
async def test_rights(cluster: FakeCluster, settings: KubernetesSettings, tmp_path: Path) -> None:
    wrong = settings.model_copy(update={"kubeconfig": cluster.kubeconfig(tmp_path, token="another")})
    assert "does not know this account" in await reason(wrong)
    right = settings.model_copy(update={"kubeconfig": cluster.kubeconfig(tmp_path)})
    cluster.forbidden = {("list", "pods"), ("get", "exec")}
    why = await reason(right)
    assert "list pods, get pods/exec; give it the role of configs/kubernetes" in why and NAMESPACE in why
    cluster.forbidden = {("create", "networkpolicies")}
    assert f"has no network policy {POLICY}, and this account may not make it" in await reason(right)


@pytest.mark.docker
async def test_tokens_are_renewed(
    cluster: FakeCluster, settings: KubernetesSettings, tmp_path: Path, run_name: str
) -> None:
    """A program that the kubeconfig names tells them, as with large clouds; it is asked again before one is over."""
    told = tmp_path / "told"

    def tell(token: str) -> None:
        soon = {"token": token, "expirationTimestamp": "2020-01-01T00:00:00Z"}
        kind = {"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential"}
        told.write_text(json.dumps({**kind, "status": soon}))

    tell("first")
    cluster.token = "first"
    path = cluster.kubeconfig(tmp_path, command=["cat", str(told)])
    backend = KubernetesBackend(run_name, settings.model_copy(update={"kubeconfig": path}))
    assert (await backend.probe()).available
    tell("second")
    cluster.token = "second"
    async with await backend.create(replace(SPEC, run=run_name)) as sandbox:
        assert (await sandbox.exec("echo fine", timeout=20)).text == "fine\n"
    told.write_text("no token")
    assert "cannot be renewed" in (await backend.probe()).reason
    await backend.close()


@pytest.mark.docker
async def test_the_policy_of_a_cluster(cluster: FakeCluster, settings: KubernetesSettings, run_name: str) -> None:
    """It is made where it is not there, and refused where it lets anything through."""
    backend = KubernetesBackend(run_name, settings)
    assert (await backend.probe()).available
    spec = cluster.policies[POLICY]["spec"]
    assert spec == {
        "podSelector": {"matchLabels": {"longhaul.dev/sandbox": "true"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [],
        "egress": [],
    }, "nothing in, nothing out"
    for change in ({"egress": [{}]}, {"policyTypes": ["Ingress"]}, {"podSelector": {"matchLabels": {"a": "b"}}}):
        cluster.policies[POLICY]["spec"] = spec | change
        assert "lets something through" in (await backend.probe()).reason, change
    await backend.close()


@pytest.mark.docker
async def test_a_network_that_holds_no_policy_is_noticed(
    cluster: FakeCluster, pods: KubernetesBackend, run_name: str
) -> None:
    cluster.holds_policies = False
    with pytest.raises(SandboxError, match="reaches the API server, so its network policy is not held") as caught:
        await pods.create(replace(SPEC, run=run_name))
    assert caught.value.kind == "network" and not cluster.pods


@pytest.mark.docker
async def test_what_a_pod_is_told(cluster: FakeCluster, pods: KubernetesBackend, run_name: str) -> None:
    """Every object passes the published schemas, or the cluster would have refused it."""
    limits = Limits(memory_mib=300, cpus=0.5, disk_mib=100)
    async with await pods.create(SandboxSpec(run=run_name, lease="a lease!", limits=limits)) as sandbox:
        assert (await sandbox.exec("env | grep -c KUBERNETES", timeout=20)).text == "0\n"
        assert (await sandbox.image_id()).startswith("sha256:")
        [pod] = cluster.pods.values()
    assert pod["metadata"]["namespace"] == NAMESPACE and pod["metadata"]["labels"]["longhaul.dev/run"] == run_name
    assert pod["metadata"]["annotations"]["longhaul.dev/lease"] == "a lease!"
    owner = parse_owner(pod["metadata"]["annotations"]["longhaul.dev/owner"])
    assert owner is not None and owner.is_alive() and owner.run == run_name
    spec = pod["spec"]
    assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
    assert spec["restartPolicy"] == "Never" and spec["activeDeadlineSeconds"] == 86_400
    [container] = spec["containers"]
    assert container["resources"]["limits"]["memory"] == "556Mi" and container["resources"]["limits"]["cpu"] == "500m"
    assert container["resources"]["requests"] == {"cpu": "125m", "memory": "300Mi", "ephemeral-storage": "164Mi"}
    security = container["securityContext"]
    assert security["allowPrivilegeEscalation"] is False and security["privileged"] is False
    assert security["capabilities"]["drop"] == ["ALL"] and set(security["capabilities"]["add"]) <= OF_BASELINE
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}


@pytest.mark.docker
@pytest.mark.parametrize(
    ("image", "change", "kind", "words"),
    [
        ("no.such/image:1", {}, "image", "cannot be pulled: ErrImagePull"),
        ("", {"room": False}, "start", "did not start within 5 s .*no node has room.*Insufficient cpu"),
        ("", {"most_pods": 0}, "quota", "no quota is left .*exceeded quota.*raise the ResourceQuota"),
        ("", {"forbidden": {("create", "pods")}}, "forbidden", "forbids pod"),
        ("", {"forbidden": {("get", "exec")}}, "forbidden", "forbids a command in pod"),
        ("", {"outages": 100}, "unavailable", "is not well .*503 etcd leader changed"),
    ],
)
async def test_no_pod_to_be_had(
    cluster: FakeCluster,
    settings: KubernetesSettings,
    run_name: str,
    image: str,
    change: dict[str, object],
    kind: str,
    words: str,
) -> None:
    waits = 5.0 if "room" in change else 60.0
    backend = KubernetesBackend(run_name, settings.model_copy(update={"start_s": waits}))
    assert (await backend.probe()).available
    for name, value in change.items():
        setattr(cluster, name, value)
    with pytest.raises(SandboxError, match=words) as caught:
        await backend.create(SandboxSpec(run=run_name, lease="lease", image=image or None))
    assert caught.value.kind == kind
    cluster.outages = 0
    await backend.close()
    await backend.purge(run_name)
    await backend.close()
    assert not cluster.pods


@pytest.mark.docker
async def test_an_api_server_that_is_soon_back(cluster: FakeCluster, pods: KubernetesBackend, run_name: str) -> None:
    cluster.outages = 2
    cluster.pull_s = 2
    creating = asyncio.create_task(pods.create(replace(SPEC, run=run_name)))
    await cluster.until_made(1)
    cluster.outages = 1  # for whoever begins the conversation
    async with await creating as sandbox:
        assert cluster.outages == 0
        cluster.outages = 1
        assert (await sandbox.exec("echo fine", timeout=20)).text == "fine\n"
    assert not cluster.pods


@pytest.mark.docker
async def test_tasks_without_an_image_need_one_of_the_settings(settings: KubernetesSettings, run_name: str) -> None:
    backend = KubernetesBackend(run_name, settings.model_copy(update={"image": ""}))
    with pytest.raises(SandboxError, match=r"set sandbox\.kubernetes\.image"):
        await backend.create(replace(SPEC, run=run_name))
    await backend.close()


@pytest.mark.docker
async def test_words_to_the_living_are_not_for_those_that_start(
    cluster: FakeCluster, pods: KubernetesBackend, run_name: str
) -> None:
    """Guests hear of their owner several times while another pod's image is pulled."""
    spec = SandboxSpec(run=run_name, lease="lease", ttl_s=4)
    async with await pods.create(spec) as living:
        cluster.pull_s = 8
        creating = asyncio.create_task(pods.create(spec))
        await cluster.until_made(2)
        assert await pods.adopt("another") is None
        async with await creating as sandbox:
            for place in (living, sandbox):
                assert (await place.exec("echo fine", timeout=20)).text == "fine\n"


@pytest.mark.docker
async def test_the_backend_of_a_run(cluster: FakeCluster, settings: KubernetesSettings, run_name: str) -> None:
    """It is proved, dead records go at its start, and the next pod of an image is there ahead of need."""
    backend = await open_backend(SandboxSettings(backend="kubernetes", kubernetes=settings, warm=1), run_name)
    spec = SandboxSpec(run=run_name, lease="first", image=settings.image)
    async with await backend.create(spec) as sandbox, asyncio.timeout(60):
        assert (await sandbox.exec("echo $HOME", timeout=20)).text == "/root\n"
        await cluster.until_made(2)
    await backend.close()
    assert not cluster.pods


@pytest.mark.docker
async def test_reaping(cluster: FakeCluster, pods: KubernetesBackend, run_name: str) -> None:
    """Records of dead owners and of pods that ended go; what lives, here or on another host, stays."""
    living = await pods.create(SandboxSpec(run=run_name, lease="living"))
    ended = await pods.create(SandboxSpec(run=run_name, lease="ended"))
    await cluster.evict(ended.name)
    mine = Owner(run_name, 1, 1, 1)  # of a process that is no more

    def record(name: str, change: Callable[[dict[str, str]], dict[str, str]], phase: str = "Running") -> None:
        pod = cluster.pods[name] = {**cluster.pods[living.name], "status": {"phase": phase}}
        metadata = pod["metadata"]
        pod["metadata"] = {**metadata, "name": name, "annotations": change(metadata["annotations"])}
        pod["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"

    record("dead", lambda told: told | {"longhaul.dev/owner": mine.name})
    record("elsewhere", lambda told: told | {"longhaul.dev/machine": "another"})
    record("ended-elsewhere", lambda told: told | {"longhaul.dev/machine": "another"}, "Failed")
    assert await pods.purge("") == 2
    assert set(cluster.pods) == {living.name, ended.name, "elsewhere"}
    other = KubernetesBackend(run_name, pods.settings)
    assert await other.purge("another-run") == 0
    assert await other.purge("") == 0
    assert await other.purge(run_name) == 2, "the run is over: all that this host made for it"
    assert set(cluster.pods) == {"elsewhere"}
    await other.close()
    del cluster.pods["elsewhere"]
    await living.close()
    await ended.close()


@pytest.mark.docker
async def test_who_holds_them(
    cluster: FakeCluster, pods: KubernetesBackend, run_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a pod that is told its own name, the cluster removes its sandboxes with it."""
    for word, value in (("NAME", "actor-7"), ("UID", "1234"), ("NAMESPACE", NAMESPACE)):
        monkeypatch.setenv(f"LONGHAUL_POD_{word}", value)
    async with await pods.create(replace(SPEC, run=run_name)):
        [pod] = cluster.pods.values()
    assert pod["metadata"]["ownerReferences"] == [{"apiVersion": "v1", "kind": "Pod", "name": "actor-7", "uid": "1234"}]
    monkeypatch.setenv("LONGHAUL_POD_NAMESPACE", "another")
    async with await pods.create(replace(SPEC, run=run_name)):
        assert all("ownerReferences" not in pod["metadata"] for pod in cluster.pods.values())
