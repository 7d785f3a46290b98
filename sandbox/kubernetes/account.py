"""As whom the API server is asked: the account of the pod that this runs in, or one of a kubeconfig."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from kubernetes_asyncio import client, config

from protocol.config.sandbox.kubernetes import KubernetesSettings
from protocol.errors import ConfigError

OF_THE_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount")
READ_S = 30.0  # that a program which a kubeconfig names may take for a token
NoAccount = config.ConfigException


async def read_account(settings: KubernetesSettings) -> tuple[client.Configuration, str]:
    """How the API server is reached, and the account's own namespace (empty: none is named). Raises `ConfigError`."""
    configuration = client.Configuration()
    configuration.connection_pool_maxsize = 0  # every sandbox holds a connection
    configuration.client_side_validation = False  # newer clusters leave out what was once required
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and (OF_THE_POD / "token").exists()
    try:
        async with asyncio.timeout(READ_S):
            if settings.kubeconfig is None and in_pod:
                config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                return configuration, _text(OF_THE_POD / "namespace")
            return configuration, await _of_kubeconfig(settings, configuration)
    except (NoAccount, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"sandbox.kubernetes.kubeconfig: {error!r}", kind="kubeconfig") from error


async def _of_kubeconfig(settings: KubernetesSettings, configuration: client.Configuration) -> str:
    path = str((settings.kubeconfig or Path(os.environ.get("KUBECONFIG", "~/.kube/config"))).expanduser())
    loader = await config.load_kube_config(
        config_file=path, context=settings.context or None, client_configuration=configuration, persist_config=False
    )
    if hasattr(loader, "exec_plugin_expiry"):
        renewing = asyncio.Lock()

        async def renew(asked: client.Configuration) -> None:
            async with renewing, asyncio.timeout(READ_S):
                await loader.load_from_exec_plugin()  # which keeps its token while that is good for minutes
            asked.api_key["BearerToken"] = loader.token

        configuration.refresh_api_key_hook = renew
    contexts, active = config.list_kube_config_contexts(path)
    chosen = next((one for one in contexts if one["name"] == settings.context), active)
    return str(chosen["context"].get("namespace", "")) if chosen else ""


def _text(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
