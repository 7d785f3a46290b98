"""`micro`: procedurally generated repositories with faults, an issue text and hidden tests; thousands a second.

The same seed, split, difficulty and index give the same task. Difficulty 0 is a wrong sum in one of three files; 1 is
one fault of any family; 2 breaks two files; from 3 on there are as many faults as the level says, in packages, behind
functions that the issue names, so that there is always a level that is not solved.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from random import Random

from msgspec import Struct

from protocol.errors import ConfigError
from sandbox.tasks.micro_faults import FAMILIES, Piece, behind
from sandbox.tasks.micro_names import SPLITS, Split, draw_names
from sandbox.tasks.task import Task

TEST_FILE = "test_hidden.py"
_PHRASES = ["{call} {sentence}", "{call} is wrong. It {sentence}", "Bug: {call} {sentence}"]


class Level(Struct, frozen=True, kw_only=True):
    """What a difficulty means."""

    num_modules: int
    num_functions: int  # of each module, about
    num_faults: int
    families: tuple[str, ...]  # of faults, and of the sound functions around them
    indirect: bool  # a fault may sit behind the function that the issue names, in packages


def level_of(difficulty: int) -> Level:
    """The level of a difficulty (any number from 0 on)."""
    return Level(
        num_modules=3 + difficulty,
        num_functions=1 if difficulty == 0 else min(2 + difficulty // 3, 4),
        num_faults=max(1, difficulty),
        families=("wrong_sum",) if difficulty == 0 else tuple(FAMILIES),
        indirect=difficulty >= 3,
    )


class Repository(Struct, frozen=True, kw_only=True):
    """One generated repository: as it is, as it should be, and what is said and tested about it."""

    broken: dict[str, str]  # path -> source
    fixed: dict[str, str]
    issue: str
    tests: str  # source of `TEST_FILE`: plain functions with assertions
    fail_to_pass: list[str]  # names of test functions
    pass_to_pass: list[str]

    @property
    def patch(self) -> str:
        """The gold change, as a unified diff with git headers."""
        changed = [path for path in sorted(self.fixed) if self.fixed[path] != self.broken[path]]
        return "".join(_git_diff(path, self.broken[path], self.fixed[path]) for path in changed)


class _Plan(Struct, frozen=True, kw_only=True):
    """Where every function lives and which are at fault."""

    paths: list[str]
    modules: list[list[Piece]]  # the functions of each path
    home: dict[str, int]  # function name -> index of its module
    culprits: dict[str, int]  # function at fault -> the module it wrongly imports from, or its own


def make_tasks(count: int, seed: int, difficulty: int, split: str) -> list[Task]:
    """The first `count` tasks of a seed, difficulty and split (`train`, or `heldout`: other names).

    Raises `ConfigError` for an unknown split.
    """
    if split not in SPLITS:
        raise ConfigError(f"tasks.split: `micro` has {' and '.join(SPLITS)}, not {split!r}", kind="tasks")
    return [_make_task(f"micro-{split}-d{difficulty}-s{seed}-{index}", difficulty, split) for index in range(count)]


def _make_task(task_id: str, difficulty: int, split: Split) -> Task:
    repository = make_repository(Random(task_id), level_of(difficulty), split)
    return Task(
        task_id=task_id,
        source="micro",
        repository=f"micro-d{difficulty}",
        issue=repository.issue,
        fail_to_pass=tuple(f"{TEST_FILE}::{name}" for name in repository.fail_to_pass),
        pass_to_pass=tuple(f"{TEST_FILE}::{name}" for name in repository.pass_to_pass),
        difficulty=difficulty,
        files=repository.broken,
        gold_patch=repository.patch,
        test_files={TEST_FILE: repository.tests},
    )


def make_repository(r: Random, level: Level, split: Split) -> Repository:
    """Draw one repository."""
    names = draw_names(r, split)
    faulty = [_draw_faulty(r, names, level) for _ in range(level.num_faults)]
    room = level.num_modules * level.num_functions - sum(len(_chain(piece)) for piece in faulty)
    sound = [_draw(r, names, level) for _ in range(max(room, 1))]
    plan = _arrange(r, names, level, faulty, sound)

    tested = r.sample([*faulty, *sound], len(faulty) + len(sound))
    unimportable = _unimportable(plan)
    failing = {piece.name for piece in tested if piece in faulty or plan.home[piece.name] in unimportable}
    phrases = _PHRASES[:1] if len(level.families) == 1 else _PHRASES
    return Repository(
        broken={path: _source(plan, i, fixed=False) for i, path in enumerate(plan.paths)},
        fixed={path: _source(plan, i, fixed=True) for i, path in enumerate(plan.paths)},
        issue="\n".join(r.choice(phrases).format(call=piece.call, sentence=piece.sentence) for piece in faulty),
        tests="\n\n".join(_test(plan, piece) for piece in tested),
        fail_to_pass=[f"test_{piece.name}" for piece in tested if piece.name in failing],
        pass_to_pass=[f"test_{piece.name}" for piece in tested if piece.name not in failing],
    )


def _draw(r: Random, names: Iterator[str], level: Level) -> Piece:
    family = level.families[0] if len(level.families) == 1 else r.choice(level.families)
    return FAMILIES[family](r, names)


def _draw_faulty(r: Random, names: Iterator[str], level: Level) -> Piece:
    piece = _draw(r, names, level)
    return behind(piece, next(names)) if level.indirect and r.random() < 0.75 else piece


def _chain(piece: Piece) -> list[Piece]:
    """The function and the helpers below it."""
    return [piece, *(_chain(piece.helper) if piece.helper else [])]


def _culprit(piece: Piece) -> Piece:
    """The function of a faulty chain that has to be changed."""
    return _culprit(piece.helper) if piece.helper and piece.fault == "helper" else piece


def _arrange(r: Random, names: Iterator[str], level: Level, faulty: list[Piece], sound: list[Piece]) -> _Plan:
    """Spread the functions over modules; helpers in earlier ones than their callers, so that no import is circular."""
    chains = [_chain(piece) for piece in (*faulty, *sound)]
    longest = max(len(chain) for chain in chains)
    modules: list[list[Piece]] = [[] for _ in range(level.num_modules)]
    home: dict[str, int] = {}
    for chain in sorted(
        chains, key=len, reverse=True
    ):  # single functions last: they go anywhere and fill what is empty
        for height, piece in enumerate(reversed(chain)):
            first, last = height * len(modules) // longest, (height + 1) * len(modules) // longest
            rooms = range(first, last) if len(chain) > 1 else range(len(modules))
            home[piece.name] = min(rooms, key=lambda i: (len(modules[i]), r.random()))
            modules[home[piece.name]].append(piece)
    for pieces in modules:
        r.shuffle(pieces)

    folders = [f"{next(names)}/" for _ in range(2)] if level.indirect else [""]
    culprits = {}
    for piece in map(_culprit, faulty):
        culprits[piece.name] = home[piece.name]
        if piece.fault == "import" and piece.helper:
            culprits[piece.name] = r.choice([i for i in range(home[piece.name]) if i != home[piece.helper.name]])
    return _Plan(
        paths=[f"{r.choice(folders)}{next(names)}.py" for _ in modules], modules=modules, home=home, culprits=culprits
    )


def _source(plan: _Plan, index: int, *, fixed: bool) -> str:
    """The text of one module."""
    pieces = plan.modules[index]
    imports = []
    for piece in pieces:
        if piece.helper:
            wrong = piece.fault == "import" and piece.name in plan.culprits and not fixed
            target = plan.culprits[piece.name] if wrong else plan.home[piece.helper.name]
            imports.append(f"from {_dotted(plan.paths[target])} import {piece.helper.name}\n")
    bodies = [piece.broken if piece.name in plan.culprits and not fixed else piece.fixed for piece in pieces]
    return "\n\n".join(["".join(imports)] * bool(imports) + bodies)


def _unimportable(plan: _Plan) -> set[int]:
    """Modules that fail on import as the repository is: those with a wrong import, and those above them."""
    failing: set[int] = set()
    for index, pieces in enumerate(plan.modules):  # helpers live in earlier modules, so one pass sees everything
        for piece in pieces:
            if piece.helper and (
                plan.home[piece.helper.name] in failing or (piece.fault == "import" and piece.name in plan.culprits)
            ):
                failing.add(index)
    return failing


def _test(plan: _Plan, piece: Piece) -> str:
    lines = [f"def test_{piece.name}():", f"    from {_dotted(plan.paths[plan.home[piece.name]])} import {piece.name}"]
    for arguments, expected in piece.checks:
        lines.append(f"    assert {piece.name}({', '.join(map(repr, arguments))}) == {expected!r}")
    return "\n".join(lines) + "\n"


def _git_diff(path: str, old: str, new: str) -> str:
    lines = difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), f"a/{path}", f"b/{path}")
    return "".join([f"diff --git a/{path} b/{path}\n", *lines])


def _dotted(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")
