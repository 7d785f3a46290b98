"""What the docs name exists: files, modules, commands, settings; and a trajectory's way is as they tell it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest

from cluster.command_line.cli import setting_names
from cluster.front_door.table import COMMANDS

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
HISTORY = {"90-log.md", "CHANGELOG.md"}  # they name what there was
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(page for page in DOCS if page.name not in HISTORY)]
PACKAGES = (
    "actors",
    "benchmarks",
    "cluster",
    "configs",
    "console",
    "docs",
    "learner",
    "protocol",
    "sandbox",
    "tests",
    "tiny",
)


def all_pages(function: object) -> object:
    return pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)(function)  # type: ignore[arg-type]


def spans(text: str) -> Iterator[str]:
    """What is code in a page: between backticks on one line, and the lines of blocks."""
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE))
    yield from re.findall(r"^    (\S.*)$", text, re.MULTILINE)


def named_paths(text: str) -> set[str]:
    """Paths of ours: from a package on, or a Python file that stands alone, without its folder."""
    code = list(spans(text))
    words = {word.rstrip(".") for span in code for word in re.findall(r"[\w./*-]+", span)}
    inside = {word for word in words if "/" in word and word.split("/")[0] in PACKAGES}
    return inside | {span for span in code if re.fullmatch(r"\w+\.py", span)}


def exists(path: str) -> bool:
    pattern = path.replace("NAME", "*").rstrip("/")
    return (
        any(ROOT.glob(pattern))
        if "/" in path
        else (ROOT / path).exists() or any(any((ROOT / p).rglob(path)) for p in PACKAGES)
    )


@all_pages
def test_every_path_exists(page: Path) -> None:
    assert not {path for path in named_paths(page.read_text()) if not exists(path)}


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert not [link for link in links if not (page.parent / link).exists()]


@all_pages
def test_every_module_and_command_can_be_called(page: Path) -> None:
    code = "\n".join(spans(page.read_text()))
    modules = set(re.findall(r"python -m ([\w.]+\w)", code)) - {"swebench.harness.run_evaluation", "benchmarks.NAME"}
    assert not {module for module in modules if find_spec(module) is None}
    groups = {command.name.split()[0] for command in COMMANDS}
    called = re.findall(r"^(?:\.venv/bin/)?longhaul ([a-z]+)", code, re.MULTILINE)
    assert not {word for word in called if word not in groups}


@all_pages
def test_every_setting_is_one(page: Path) -> None:
    flags = set(re.findall(r"(?<![\w-])--([a-z_]+\.[a-z][a-z0-9.-]*[a-z0-9])", page.read_text()))
    known = {name.replace("_", "-") for name in setting_names()}
    assert not {flag for flag in flags if flag not in known}


def test_pages_are_numbered_and_all_are_on_the_front_page() -> None:
    numbers = [page.name.partition("-")[0] for page in DOCS]
    assert numbers == sorted(set(numbers)) and all(number.isdecimal() for number in numbers)
    front = (ROOT / "README.md").read_text()
    assert [page.name for page in DOCS if f"(docs/{page.name})" not in front] == []


def test_a_trajectory_goes_the_way_that_is_told() -> None:
    rows = re.findall(
        r"^\| \d+ \| `([\w/]+\.py)` \|.*\| ([^|]*) \|$", (ROOT / "docs/70-architecture.md").read_text(), re.M
    )
    assert 9 <= len(rows) <= 12
    for (file, hands_on), (following, _) in pairwise(rows):
        names = re.findall(r"`(\w+)`", hands_on)
        for path, name in ((file, names[0]), (following, names[-1])):
            assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{path} knows no {name}"


def test_a_path_that_is_gone_would_be_seen() -> None:
    assert named_paths("see `actors/agent.py`, `loop.py` and\n```\nsandbox/x.py --flag\n```\n") == {
        "actors/agent.py",
        "loop.py",
        "sandbox/x.py",
    }
    assert not exists("actors/agent.py")
    assert exists("loop.py") and exists("learner/objectives/table/NAME.py")
