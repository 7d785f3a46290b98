"""`longhaul run` (and `python launch.py`) and `longhaul eval`: settings from flags and files, then the run."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from cluster.command_line.cli import CommandLine, exit_with, run_command_line
from cluster.command_line.help import help_text
from protocol.config import Settings
from protocol.errors import ConfigError


def run(arguments: Sequence[str], program: str) -> int:
    """Returns the exit status: 0 done, 1 a part failed, 2 bad input, 130/143 interrupted."""
    settings, command_line = run_command_line(arguments, program)
    for line in command_line.from_preset:
        print(line, file=sys.stderr)
    if command_line.dry_run:
        print(settings.model_dump_json(indent=2))
        print("\n".join(_placement(settings)), file=sys.stderr)
        return 0
    from cluster.session import run as run_session

    if settings.stages:
        from cluster.stages import run_in_a_row

        return run_in_a_row(arguments, command_line, run_session)
    return asyncio.run(run_session(settings))


def _placement(settings: Settings) -> list[str]:
    """Where the parts of the run would go, or why nowhere."""
    from cluster.files.relocation import relocated
    from cluster.files.sources import description
    from cluster.hosts.collectives import check_collectives
    from cluster.hosts.commands import this_host
    from cluster.hosts.demand import demand_of
    from cluster.hosts.plan import plan
    from cluster.placement import hosts_at

    lines: list[str] = []

    try:
        model = settings.model.path
        settings = relocated(
            settings, {model: str(description(model, settings.tasks.cache_dir, settings.hosts.fetch_s))}
        )
        hosts = hosts_at(settings.ray_address) if settings.ray_address else [this_host()]
        found = plan(hosts, demand_of(settings, hosts))
        lines += ["placement:", *found.lines()]
        check_collectives(settings, found)
    except ConfigError as error:
        lines.append(f"placement: {error}")
    return lines


def evaluate(arguments: Sequence[str], program: str) -> int:
    """`run` in phase `eval`. Statuses as there."""
    if "--help" in arguments or "-h" in arguments:
        print(help_text(CommandLine, program, evaluation=True))
        return 0
    if any(argument.partition("=")[0] == "--phase" for argument in arguments):
        exit_with(ConfigError("this is --phase eval; another phase is for `longhaul run`", kind="phase"))
    return run(["--phase=eval", *arguments], program)
