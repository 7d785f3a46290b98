"""The noisy scripted agent that the tiny base model imitates.

It knows the gold change and plays it turn by turn, but errs on purpose: it looks in a random file, changes a line to
something else, gives up early, forgets the fence. Every right choice keeps a sizeable probability in every situation:
reinforcement learning has something to sharpen.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from random import Random

from msgspec import Struct

from sandbox.tasks.micro import Repository


class Noise(Struct, frozen=True, kw_only=True):
    """Probabilities of the expert's errors."""

    stray: float = 0.3  # look into a random file instead of searching for the function
    wrong_change: float = 0.6  # write another operator, number or name than the right one
    give_up: float = 0.05  # submit now, at each turn
    no_fence: float = 0.02  # forget the command block, at each turn


NO_NOISE = Noise(stray=0.0, wrong_change=0.0, give_up=0.0, no_fence=0.0)


class Edit(Struct, frozen=True, kw_only=True):
    """Lines first..last (from 1, inclusive; last = first - 1 inserts) of a file become `new`."""

    path: str
    first: int
    last: int
    new: list[str]


def script(r: Random, repository: Repository, noise: Noise = NO_NOISE) -> Iterator[str]:
    """The texts of the model's turns, from the first search to `submit`."""
    for command in _commands(r, repository, noise):
        if r.random() < noise.give_up:
            break
        yield command if r.random() < noise.no_fence else fenced(command)
    yield fenced("submit")


def fenced(command: str) -> str:
    """A command as a model turn."""
    return f"```command\n{command}\n```"


def _commands(r: Random, repository: Repository, noise: Noise) -> Iterator[str]:
    for edit in gold_edits(repository):
        if r.random() < noise.stray and not any("/" in path for path in repository.broken):
            yield "ls"
            path = r.choice(sorted(repository.broken))
            yield f"open {path}"
            yield _edit_command(r, _as_if_here(repository, path, edit), noise, _words(repository.broken[path]))
            continue
        name = _named_function(repository, edit)
        yield f"search_dir {name}"
        home = next(path for path, text in repository.broken.items() if f"def {name}(" in text)
        yield f"open {home}"
        if edit.path != home:
            yield f"open {edit.path}"
        yield _edit_command(r, edit, noise, [*_words(repository.broken[edit.path]), edit.path.removesuffix(".py")])


def _edit_command(r: Random, edit: Edit, noise: Noise, seen: list[str]) -> str:
    wrong = r.random() < noise.wrong_change
    new = [corrupt(r, line, seen) if wrong else line for line in edit.new]
    return "\n".join([f"edit {edit.path} {edit.first}:{edit.last}", *new])


def _named_function(repository: Repository, edit: Edit) -> str:
    """The function that the issue says is wrong because of what `edit` mends: the edited one, or one that calls it."""
    functions = {match[1]: match[2] for text in repository.broken.values() for match in _FUNCTION.finditer(text)}
    lines = repository.broken[edit.path].splitlines()
    above = [match[1] for line in lines[: edit.first - 1] if (match := re.match(r"def (\w+)", line))]
    at_fault = above[-1] if above else lines[edit.first - 1].split()[-1]  # or what a wrong import imports
    named = re.findall(r"(\w+)\([\w, ]*\) (?:must|is wrong)", repository.issue)
    while at_fault not in named:
        at_fault = next(name for name, body in functions.items() if f"{at_fault}(" in body)
    return at_fault


def gold_edits(repository: Repository) -> list[Edit]:
    """The gold change as edits; those of one file from its end, so that line numbers stay right."""
    edits = []
    for path, fixed in sorted(repository.fixed.items()):
        old, new = repository.broken[path].splitlines(), fixed.splitlines()
        for tag, i1, i2, j1, j2 in reversed(SequenceMatcher(None, old, new, autojunk=False).get_opcodes()):
            if tag != "equal":
                edits.append(Edit(path=path, first=i1 + 1, last=i2, new=new[j1:j2]))
    return edits


def _as_if_here(repository: Repository, path: str, edit: Edit) -> Edit:
    """The edit that someone makes who believes that the fault is in `path`."""
    lines = repository.broken[path].splitlines()
    places = [number for number, line in enumerate(lines, 1) if line.lstrip().startswith("return")]
    return edit if path == edit.path else Edit(path=path, first=places[0], last=places[0], new=edit.new)


_FUNCTION = re.compile(r"^def (\w+)\(.*\n((?: .*\n)+)", re.MULTILINE)
_CHOICES = [
    re.compile(r"(?<= )(//|[-+*%])(?= )"),
    re.compile(r"(?<= )(<=|>=|==|<|>)(?= )"),
    re.compile(r"\b(\d)\b"),
    re.compile(r"\b([abmnxy])\b"),
]
_ALTERNATIVES = [["+", "-", "*", "//", "%"], ["<", ">", "<=", ">=", "=="], list("0123456789"), list("abmnxy")]


def _words(text: str) -> list[str]:
    """Function names and quoted words of a file."""
    return [*re.findall(r"def (\w+)", text), *re.findall(r'"(\w+)"', text)]


def corrupt(r: Random, line: str, seen: list[str]) -> str:
    """`line` with a quoted word (for one of `seen`), operator, number or argument exchanged; unchanged without one."""
    if quoted := re.search(r'"(\w+)"', line):
        return line.replace(quoted[1], r.choice(seen))
    for pattern, alternatives in zip(_CHOICES, _ALTERNATIVES, strict=True):
        if found := list(pattern.finditer(line)):
            match = r.choice(found)
            other = r.choice([a for a in alternatives if a != match[1]])
            return line[: match.start(1)] + other + line[match.end(1) :]
    return line
