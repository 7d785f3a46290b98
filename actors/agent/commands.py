"""The text of a model turn -> one command, or a message that tells the model what to change."""

from __future__ import annotations

import re
import shlex

from msgspec import Struct

_BLOCK = re.compile(r"^(?P<fence>`{3,})command[ \t]*\n(?P<text>.*?)^(?P=fence)[ \t]*$", re.DOTALL | re.MULTILINE)
_THOUGHT_ENDS = "</think>"
_OPENING = re.compile(r"^`{3,}command[ \t]*$", re.MULTILINE)

NO_COMMAND = "[format error: no command. Write exactly one block that starts with ```command and ends with ```]"
SEVERAL_COMMANDS = "[format error: several commands ({count}). Write one ```command block, wait for its output]"
UNCLOSED = "[format error: the ```command block is not closed. End it with ``` on a line of its own]"
CUT = "[format error: your turn was cut at the limit of {num_tokens} tokens. Write less, one ```command block]"


class FormatError(Exception):
    """The turn holds no readable command. `str(error)` is the answer to the model."""


class Command(Struct, frozen=True, kw_only=True):
    """One tool call. `body` is the text after the first line (the whole text for `shell`)."""

    tool: str
    args: list[str] = []
    body: str = ""


def spoken(text: str) -> str:
    """A turn without what was thought (all that stands before its last `</think>`), with plain line ends."""
    return text.rpartition(_THOUGHT_ENDS)[2].replace("\r\n", "\n")


def extract_block(text: str) -> str:
    """The text of the one fenced command of a turn, line ends kept. Raises `FormatError`.

    A block whose text holds ``` lines itself may be fenced by four backticks or more.
    """
    blocks = list(_BLOCK.finditer(text))
    outside = _BLOCK.sub("", text)
    count = len(blocks) + len(_OPENING.findall(outside))
    if count > 1:
        raise FormatError(SEVERAL_COMMANDS.format(count=count))
    if not blocks:
        raise FormatError(UNCLOSED if count else NO_COMMAND)
    block = blocks[0]["text"]
    if not block.strip():
        raise FormatError(NO_COMMAND)
    return block


def parse_command(block: str, tools: frozenset[str]) -> Command:
    """A block whose first word is one of `tools` calls it; all else is a shell command. Raises `FormatError`."""
    first, _, rest = block.lstrip("\n").partition("\n")
    name, _, words = first.strip().partition(" ")
    if name == "shell":
        return Command(tool="shell", body=f"{words}\n{rest}".strip("\n"))
    if name not in tools:
        return Command(tool="shell", body=block.strip("\n"))
    try:
        return Command(tool=name, args=shlex.split(words), body=rest)
    except ValueError as error:
        raise FormatError(f"[format error: cannot read the arguments of {name}: {error}]") from None
