"""`longhaul cluster plan`: which process would go to which host, of hosts that are only described."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from cluster.command_line.cli import read_file, settings_of
from cluster.hosts.demand import demand_of
from cluster.hosts.plan import Host, Size, plan
from protocol.config import Settings
from protocol.errors import ConfigError

_GIB = 1 << 30


def plan_command(arguments: Sequence[str], program: str) -> int:
    """Print the plan. Returns 0, 1 where the hosts cannot hold the run, 2 for what was mistyped."""
    parser = argparse.ArgumentParser(prog=program, description=(__doc__ or "").partition(": ")[2])
    parser.add_argument("--config", type=Path, help="settings file (TOML; default: the default settings)")
    parser.add_argument("--model", type=Path, help="directory with a config.json (default: model.path of the settings)")
    parser.add_argument(
        "--hosts",
        action="append",
        required=True,
        metavar="N:cpus=C[,gpus=G],memory=GIB[,KEY=VALUE]",
        help="so many equal hosts, with labels; again for others. The first one launches",
    )
    options = parser.parse_args(arguments)
    try:
        settings = settings_of(read_file(options.config))
        if options.model:
            settings = settings.model_copy(
                update={"model": settings.model.model_copy(update={"path": str(options.model)})}
            )
        hosts = described(options.hosts)
    except (OSError, ValueError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    try:
        print("\n".join(placement(settings, hosts)))
    except ConfigError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 1
    return 0


def placement(settings: Settings, hosts: list[Host]) -> list[str]:
    """The plan in lines. Raises `ConfigError` with a sentence where there is none."""
    return ["placement:", *plan(hosts, demand_of(settings, hosts)).lines()]


def this_host() -> Host:
    """As Ray would see it if it were started here."""
    from actors.generator.engine import has_gpu

    num_gpus = 0
    if has_gpu():
        import torch

        num_gpus = torch.cuda.device_count()
    return Host(
        name="this host",
        size=Size(psutil.cpu_count() or 1, num_gpus, psutil.virtual_memory().total / _GIB),
        is_launcher=True,
    )


def described(texts: Sequence[str]) -> list[Host]:
    """Hosts from `16:cpus=192,gpus=8,memory=2000`. Raises `ValueError` that says what was expected."""
    hosts: list[Host] = []
    for text in texts:
        count, _, amounts = text.partition(":")
        pairs = dict(pair.partition("=")[::2] for pair in amounts.split(","))
        try:
            size = Size(float(pairs.pop("cpus")), int(pairs.pop("gpus", "0")), float(pairs.pop("memory")))
            number = int(count)
        except (KeyError, ValueError):
            raise ValueError(f"--hosts {text}: expected N:cpus=C[,gpus=G],memory=GIB[,KEY=VALUE]") from None
        first = len(hosts)
        hosts += [
            Host(name=f"host-{first + i}", size=size, is_launcher=first + i == 0, labels=pairs) for i in range(number)
        ]
    return hosts
