"""Hosts that a run is asked to leave: `longhaul drain HOST RUN_DIR` writes a note, the run reads and removes it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

_FOLDER = "drain"


def command(arguments: Sequence[str], program: str) -> int:
    """Ask. Returns 0, or 2 where there is no such run."""
    parser = argparse.ArgumentParser(prog=program, description="Have a run leave a host: episodes there are finished.")
    parser.add_argument("host", help="its name, or the beginning of it up to the `/`, as the run prints it")
    parser.add_argument("run_dir", type=Path, help="directory of the run")
    options = parser.parse_args(arguments)
    if not (options.run_dir / "settings.json").is_file():
        print(f"{program}: {options.run_dir} is no run directory", file=sys.stderr)
        return 2
    ask(options.run_dir, options.host)
    print(f"asked; the run says when {options.host} is drained, or why it cannot be")
    return 0


def ask(run_dir: Path, host: str) -> None:
    """Leave the note."""
    (run_dir / _FOLDER).mkdir(exist_ok=True)
    (run_dir / _FOLDER / host.replace("/", "@")).touch()


def asked(run_dir: Path, hosts: Sequence[str]) -> list[str]:
    """Take the notes: the hosts of the run that they name."""
    found = []
    for note in sorted((run_dir / _FOLDER).glob("*")):
        named = note.name.replace("@", "/")
        found += [host for host in hosts if host == named or host.partition("/")[0] == named]
        note.unlink(missing_ok=True)
    return found
