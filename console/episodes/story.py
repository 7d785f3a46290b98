"""An episode as turns: what the model thought, what it did, what came back, and where its history branches."""

from __future__ import annotations

import re
from typing import NamedTuple

from console.run_data.records import Message, Record

_THOUGHT = re.compile(r"\A\s*<think(?:ing)?>(.*?)(?:</think(?:ing)?>|\Z)", re.DOTALL)
_FENCE = re.compile(r"^(`{3,})(command|bash|sh|shell)[^\S\n]*\n(.*?)^\1[^\S\n]*$", re.DOTALL | re.MULTILINE)


class Said(NamedTuple):
    """One message with its place in the record."""

    place: int
    message: Message


class Turn(NamedTuple):
    """One model action and what answered it."""

    number: int  # from 1
    parent: int  # the turn that it goes on from, 0: none
    sampled: Said
    thought: str
    prose: str  # around the command
    command: str
    given: list[Said]  # what came before it on a branch of its own
    answers: list[Said]

    @property
    def branches(self) -> bool:
        """Whether it does not go on from the turn before it."""
        return self.parent != self.number - 1


class Story(NamedTuple):
    """The opening, the turns, and the turns of every path of the tree."""

    opening: list[Said]
    turns: list[Turn]
    paths: list[list[int]]


def tell(record: Record) -> Story:
    """An episode in the order in which it happened."""
    opening: list[Said] = []
    turns: list[Turn] = []
    waiting: list[Said] = []  # for the turn of its branch
    for place, message in enumerate(record.messages):
        said = Said(place, message)
        if message.tokens is not None and message.role == "assistant":
            number = len(turns) + 1
            parent = number - 1 if message.after is None else min(max(message.after + 1, 0), number - 1)
            thought, prose, command = take_apart(message.text)
            turns.append(Turn(number, parent, said, thought, prose, command, waiting, []))
            waiting = []
        elif message.after is not None:
            waiting.append(said)
        elif turns:
            turns[-1].answers.append(said)
        else:
            opening.append(said)
    if waiting and turns:
        turns[-1].answers.extend(waiting)
    return Story(opening, turns, paths(turns))


def take_apart(text: str) -> tuple[str, str, str]:
    """Reasoning, prose and command of a turn. The three hold all of its text but the marks between them."""
    thought = _THOUGHT.match(text)
    rest = text[thought.end() :] if thought else text
    fences = list(_FENCE.finditer(rest))
    if len(fences) != 1:  # none, or a format error: shown as it stands
        return (thought[1].strip() if thought else ""), rest.strip(), ""
    fence = fences[0]
    prose = f"{rest[: fence.start()].rstrip()}\n{rest[fence.end() :].lstrip()}".strip()
    return (thought[1].strip() if thought else ""), prose, fence[3].rstrip("\n")


def paths(turns: list[Turn]) -> list[list[int]]:
    """The turns of every path, from its root to a turn that no other goes on from."""
    parents = {turn.number: turn.parent for turn in turns}
    leaves = [number for number in parents if number not in parents.values()]
    found = []
    for leaf in leaves:
        path = [leaf]
        while parents[path[-1]]:
            path.append(parents[path[-1]])
        found.append(path[::-1])
    return found


def first_difference(stories: list[Story]) -> int | None:
    """The first turn (from 1) that is not the same in all; None if all are equal."""
    texts = [[turn.sampled.message.text for turn in story.turns] for story in stories]
    for place in range(max((len(turns) for turns in texts), default=0)):
        if len({turns[place] if place < len(turns) else None for turns in texts}) > 1:
            return place + 1
    return None
