"""Train or evaluate: `python launch.py --num-actors 512`. `--help` explains every setting."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence

from cluster.command_line.cli import run_command_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0 done, 1 a part failed, 2 bad input, 130/143 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    settings, command_line = run_command_line(arguments)
    if command_line.dry_run:
        print(settings.model_dump_json(indent=2))
        return 0
    from cluster.session import run

    if settings.stages:
        from cluster.stages import run_in_a_row

        return run_in_a_row(arguments, command_line, run)
    return asyncio.run(run(settings))


if __name__ == "__main__":
    sys.exit(main())
