"""Whether the sockets of NCCL and gloo may be opened as a plan needs them: they neither encrypt nor ask who connects.

Collectives of one host stay on its loopback (`ON_LOOPBACK`). Between hosts nothing protects them (torch's gloo is built
without TLS, NCCL has none), so there they are refused, unless the network is the run's alone.
"""

from __future__ import annotations

from cluster.hosts.plan import Plan
from protocol.config import Settings
from protocol.errors import ConfigError

ON_LOOPBACK = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
"""Environment of a process whose collectives are of its own host."""


def check_collectives(settings: Settings, plan: Plan) -> None:
    """Raises `ConfigError` where a collective would cross a network on which others may be."""
    ranks = list(dict.fromkeys(part.host for part in plan.of("learner")))
    if settings.network.trusted or not ranks:
        return
    how = "NCCL" if any(part.size.gpus for part in plan.of("learner")) else "gloo"
    if len(ranks) > 1:
        raise ConfigError(
            f"learner ranks go to {_names(ranks)}, and {how} between them neither encrypts nor asks who connects: say "
            "with --network.trusted true that nobody but the run is on that network, or let one host hold all ranks "
            "(--learner.ranks)",
            kind="collectives",
        )
    others = [host for host in dict.fromkeys(part.host for part in plan.of("generator")) if host != ranks[0]]
    if settings.weights.channel == "nccl" and others:
        raise ConfigError(
            f"--weights.channel nccl would send weights from {ranks[0]} to {_names(others)} by {how}, which neither "
            "encrypts nor asks who connects: say with --network.trusted true that nobody but the run is on that "
            "network, or leave the channel to auto, which is encrypted between hosts",
            kind="collectives",
        )


def stay_on_their_host(settings: Settings, role: str) -> bool:
    """Whether the collectives of a process of a checked plan are of its own host: those of the engine alone are; ranks,
    and generators to which weights are broadcast, may be joined by other hosts where the network is trusted."""
    if role == "generator" and settings.weights.channel != "nccl":
        return True
    return not settings.network.trusted


def _names(hosts: list[str]) -> str:
    return f"{', '.join(hosts[:3])}{' and others' if len(hosts) > 3 else ''}"
