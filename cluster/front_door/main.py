"""`longhaul COMMAND ...`: finds the command in the table, imports what does it, calls it."""

from __future__ import annotations

import difflib
import importlib
import os
import shutil
import signal
import sys
import textwrap
from collections.abc import Iterable, Sequence

from cluster.front_door.table import COMMANDS, GROUPS, Command, Example

_HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. Returns its exit status; 2 where there is no such command."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        try:
            return _dispatch(arguments)
        finally:
            sys.stdout.flush()  # here, where it can be caught
    except BrokenPipeError:
        if not _only_prints(arguments):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has read enough
        return 128 + signal.SIGPIPE


def _only_prints(arguments: Sequence[str]) -> bool:
    command = find(_leading_words(arguments))
    return command is None or command.only_prints or any(argument in _HELP for argument in arguments)


def _dispatch(arguments: list[str]) -> int:
    words = _leading_words(arguments)
    if not words:
        print(overview(COMMANDS))
        return 0 if arguments and arguments[0] in _HELP else 2
    command = find(words)
    if command is not None:
        return _call(command, arguments[len(command.name.split()) :])
    group = [command for command in COMMANDS if command.name.startswith(f"{words[0]} ")]
    if group and len(words) == 1:
        print(overview(group, words[0]))
        return 0 if arguments[1:] and arguments[1] in _HELP else 2
    print(f"longhaul: no command `{' '.join(words)}`: did you mean `longhaul {nearest(words)}`?", file=sys.stderr)
    return 2


def find(words: Sequence[str]) -> Command | None:
    """The command that these words begin with."""
    return next((c for c in COMMANDS if list(words[: len(c.name.split())]) == c.name.split()), None)


def nearest(words: Sequence[str]) -> str:
    """The name of the command that was probably meant: by its whole name, or by its last word alone."""
    spelled = {name: command.name for command in COMMANDS for name in (command.name.split()[-1], command.name)}
    asked = [" ".join(words), words[0], words[-1]]
    if len(words) > 1 and difflib.get_close_matches(words[0], GROUPS):  # a group is like all of its commands
        asked = [" ".join(words), " ".join(words[:2]), words[1]]
    return spelled[max(spelled, key=lambda name: max(_likeness(word, name) for word in asked))]


def _likeness(word: str, name: str) -> float:
    begins = word.startswith(name) or name.startswith(word)
    return difflib.SequenceMatcher(None, word, name).ratio() + 0.3 * begins


def overview(commands: Iterable[Command], group: str = "") -> str:
    """What `longhaul --help`, or that of a group, says."""
    title = f"longhaul {group}: {GROUPS[group]}" if group else "Longhaul trains software-engineering agents."
    rows = [(f"longhaul {command.name}", command.does) for command in commands]
    width = max(len(name) for name, _ in rows)
    lines = [title, "", *(f"  {name:{width}}  {does}" for name, does in rows), ""]
    lines.append("`longhaul COMMAND --help` shows how by examples. `python launch.py` is `longhaul run`.")
    return "\n".join(lines)


def examples(command: Command) -> str:
    """What a command is for, and its examples, before its own help."""
    lines = [f"{command.name}: {command.does}", ""]
    lines += (line for example in command.examples for line in _example(example))
    return "\n".join(lines)


def _example(example: Example) -> list[str]:
    width = max(60, min(120, shutil.get_terminal_size().columns))
    return [
        f"  {example.line}",
        *textwrap.wrap(example.meaning, width, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]


def _call(command: Command, arguments: list[str]) -> int:
    if command.examples and any(argument in _HELP for argument in arguments):
        print(f"{examples(command)}\n")
    module, _, function = command.target.partition(":")
    status: int = getattr(importlib.import_module(module), function)(arguments, f"longhaul {command.name}")
    return status


def _leading_words(arguments: Sequence[str]) -> list[str]:
    """What stands before the first flag, as far as a command's name can go."""
    words: list[str] = []
    for argument in arguments[:2]:
        if argument.startswith("-"):
            break
        words.append(argument)
    return words
