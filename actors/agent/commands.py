"""The text of a model turn -> one command, or a message that tells the model what to change."""

from __future__ import annotations

import bisect
import re
import shlex

from msgspec import Struct

_FENCE = re.compile(r"(`{3,})(command)?[ \t]*")
_THOUGHT_ENDS = re.compile(r"</think(?:ing)?>|</seed:think>|\[/THINK\]|◁/think▷")
_THOUGHT_BEGINS = re.compile(r"\s*(?:<think(?:ing)?>|<seed:think>|\[THINK\]|◁think▷)")
_LEFT_OPEN = re.compile(rf"(?:{_THOUGHT_BEGINS.pattern})\s*\Z")
_MOST_OF_A_MARK = 64  # characters, with the space around it

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


def spoken(text: str, *, begun: bool = False) -> str:
    """A turn without what was thought, with plain line ends: all that stands before its last `</think>`, or what other
    families write in its place; a turn that begins with a thought and does not end it says nothing.

    Args:
        begun: the template has begun the thought already (`leaves_thought_open`), so that the turn itself does not.
    """
    ends = [match.end() for match in _THOUGHT_ENDS.finditer(text)]
    if not ends and (begun or _THOUGHT_BEGINS.match(text)):
        return ""
    return text[ends[-1] if ends else 0 :].replace("\r\n", "\n")


def leaves_thought_open(opening: str) -> bool:
    """Whether what a template writes before a model turn ends inside a thought."""
    return _LEFT_OPEN.search(opening[-_MOST_OF_A_MARK:]) is not None


def extract_block(text: str) -> str:
    """The text of the one fenced command of a turn, line ends kept. Raises `FormatError`.

    A block whose text holds ``` lines itself may be fenced by four backticks or more.
    """
    blocks, num_unclosed = _blocks(text)
    count = len(blocks) + num_unclosed
    if count > 1:
        raise FormatError(SEVERAL_COMMANDS.format(count=count))
    if not blocks:
        raise FormatError(UNCLOSED if count else NO_COMMAND)
    if not blocks[0].strip():
        raise FormatError(NO_COMMAND)
    return blocks[0]


def _blocks(text: str) -> tuple[list[str], int]:
    """The fenced commands of a turn, and how many are not closed. In time that grows with the text's length alone: a
    turn may be one opening after another, and all episodes of a process wait meanwhile."""
    lines = text.split("\n")
    fences = {number: match for number, line in enumerate(lines) if (match := _FENCE.fullmatch(line))}
    closings: dict[str, list[int]] = {}
    for number, match in fences.items():
        if not match[2]:
            closings.setdefault(match[1], []).append(number)
    blocks: list[str] = []
    num_unclosed = after = 0
    for number, match in fences.items():
        if number < after or not match[2]:
            continue
        ends = closings.get(match[1], [])
        place = bisect.bisect(ends, number)
        if place == len(ends):
            num_unclosed += 1
            continue
        after = ends[place] + 1
        blocks.append("".join(f"{line}\n" for line in lines[number + 1 : after - 1]))
    return blocks, num_unclosed


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
