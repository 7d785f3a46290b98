"""What Ray knows of hosts, and what it keeps for a run on each: the thin shell around `plan.py`."""

from __future__ import annotations

from typing import Any

from cluster.hosts.plan import Host, Placed, Plan, Size
from protocol.errors import ConfigError

_GIB = 1 << 30
_RESERVE_S = 30.0
NODE = "ray.io/node-id"
"""Label that Ray gives every host."""


def read_hosts() -> list[Host]:
    """The living hosts of the cluster that this process has joined, with what is free on each."""
    import ray
    from ray._private.state import available_resources_per_node

    here = ray.get_runtime_context().get_node_id()
    free = available_resources_per_node()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    hosts = []
    for node in sorted(nodes, key=lambda node: (node["NodeID"] != here, node["NodeManagerAddress"])):
        there = free.get(node["NodeID"]) or node["Resources"]  # a host that has just joined has reported nothing yet
        size = Size(there.get("CPU", 0.0), int(there.get("GPU", 0)), there.get("memory", 0.0) / _GIB)
        hosts.append(
            Host(
                # a host that is started anew is another one, and must not be taken for what it was
                name=f"{node['NodeManagerHostname']}/{node['NodeID'][:6]}",
                size=size,
                is_launcher=node["NodeID"] == here,
                labels=dict(node.get("Labels", {})),
                address=node["NodeManagerAddress"],
            )
        )
    return hosts


def host_names() -> set[str]:
    """Of the hosts that Ray believes to live."""
    return {host.name for host in read_hosts()}


class Reservations:
    """One placement group a host, one bundle a part: a run has its whole room, or none of it.

    Raises `ConfigError` if Ray does not give it in time.
    """

    def __init__(self, plan: Plan) -> None:
        self._places: dict[str, tuple[Any, int, Size]] = {}
        self.add(plan, [part.name for part in plan.parts])

    def add(self, plan: Plan, names: list[str]) -> None:
        """Room for parts that are new, or have moved."""
        groups = {}
        for host in plan.hosts:
            if parts := [part for part in plan.on(host.name) if part.name in names]:
                groups[host.name] = self._reserve(host, parts)
        for name, group in groups.items():
            if not group.wait(_RESERVE_S):
                raise ConfigError(
                    f"Ray did not give this run its room on {name} within {_RESERVE_S:g} s: something else was placed "
                    "there meanwhile (`ray status` shows what); try again",
                    kind="hosts",
                )

    def release(self, names: list[str]) -> None:
        """Give back the groups that hold these parts, with all that is placed there."""
        from ray.util.placement_group import remove_placement_group

        places = [self._places.pop(name) for name in names if name in self._places]
        for group in {group.id: group for group, *_ in places}.values():
            remove_placement_group(group)

    def options(self, part: str) -> dict[str, Any]:
        """Where Ray must place a part and what it takes there."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group, index, size = self._places[part]
        return {
            "num_cpus": size.cpus,
            "num_gpus": size.gpus,
            "memory": int(size.memory_gib * _GIB),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=group, placement_group_bundle_index=index
            ),
        }

    def _reserve(self, host: Host, parts: list[Placed]) -> Any:
        from ray.util.placement_group import placement_group

        bundles = [_bundle(part.size) for part in parts]
        label = {NODE: host.labels[NODE]}
        group = placement_group(bundles, strategy="STRICT_PACK", bundle_label_selector=[label] * len(bundles))
        self._places |= {part.name: (group, index, part.size) for index, part in enumerate(parts)}
        return group


def _bundle(size: Size) -> dict[str, float]:
    """As Ray counts: nothing of what is not needed."""
    amounts = {"CPU": size.cpus, "GPU": float(size.gpus), "memory": float(int(size.memory_gib * _GIB))}
    return {name: amount for name, amount in amounts.items() if amount}
