"""The house: imports go down its floors, nothing imports in a circle, and no room is crowded."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "protocol": set(),
    "sandbox": {"protocol"},
    "actors": {"protocol", "sandbox"},
    "learner": {"protocol"},
    "console": {"protocol"},
    "cluster": {"protocol", "sandbox", "actors", "learner", "console"},
    "tiny": {"protocol", "sandbox", "actors", "learner", "cluster"},
    "benchmarks": {"protocol", "sandbox", "actors", "learner", "cluster", "console", "tiny", "launch"},
    "launch": {"protocol", "sandbox", "actors", "learner", "cluster"},
}
HEAVY = {"torch", "vllm", "ray", "transformers", "deepspeed"}
# spoken between processes that hold weights; nothing else here loads it
ON_DEVICES = ROOT / "protocol" / "weights" / "broadcast.py"
MOST_FILES = 16  # of a folder's own


class Arrow(NamedTuple):
    """One import, as it stands in the code."""

    importer: str  # path relative to the root
    line: int
    imported: str

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def sources(root: Path = ROOT) -> list[Path]:
    packages = [path for name in MAY_IMPORT for path in sorted((root / name).rglob("*.py"))]
    return [path for path in [root / "launch.py", *packages] if path.is_file()]


def arrows(root: Path) -> list[Arrow]:
    """Every import of a file of ours by a file of ours; those inside functions, and those for types only, count."""
    files = {str(path.relative_to(root)) for path in sources(root)}

    def file_of(module: str) -> str | None:
        path = module.replace(".", "/")
        return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in files), None)

    def imported(node: ast.AST) -> Iterator[str | None]:
        if isinstance(node, ast.Import):
            yield from (file_of(alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (file_of(f"{node.module}.{alias.name}") or file_of(node.module) for alias in node.names)

    found = {
        Arrow(importer, node.lineno, target)  # type: ignore[attr-defined]
        for importer in files
        for node in ast.walk(ast.parse((root / importer).read_text()))
        for target in imported(node)
        if target is not None and target != importer
    }
    return sorted(found)


def room_of(path: str) -> str:
    """The folder of a file; a file that stands in a package itself is a room of its own."""
    folder = str(Path(path).parent)
    return path if "/" not in folder else folder


def circles(arrows: list[Arrow]) -> list[str]:
    """Every circle among files and among rooms, told by the arrow that closes it and the way back."""
    by_file: dict[str, dict[str, Arrow]] = defaultdict(dict)
    by_room: dict[str, dict[str, Arrow]] = defaultdict(dict)
    for arrow in arrows:
        by_file[arrow.importer][arrow.imported] = arrow
        if room_of(arrow.importer) != room_of(arrow.imported):
            by_room[room_of(arrow.importer)].setdefault(room_of(arrow.imported), arrow)
    return list(dict.fromkeys([*_circles(by_file), *_circles(by_room)]))


def _circles(graph: Mapping[str, Mapping[str, Arrow]]) -> Iterator[str]:
    done: set[str] = set()

    def visit(place: str, way: list[str]) -> Iterator[str]:
        if place in done:
            return
        for target, arrow in sorted(graph.get(place, {}).items()):
            if target in way or target == place:
                back = [*way[way.index(target) :], place] if target in way else [place]
                yield f"{arrow} closes a circle: {' -> '.join([*back, target])}"
            else:
                yield from visit(target, [*way, place])
        done.add(place)

    for place in sorted(graph):
        yield from visit(place, [])


def imported_packages(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def breaches(path: Path, package: str) -> list[str]:
    allowed = MAY_IMPORT[package] | {package}
    return sorted(name for name in set(imported_packages(path)) if name in MAY_IMPORT and name not in allowed)


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not breaches(path, package)
    if package == "protocol" and path != ON_DEVICES:
        assert "protocol.weights.broadcast" not in path.read_text()
        assert not HEAVY & set(imported_packages(path))


def test_a_breach_would_be_seen(tmp_path: Path) -> None:
    upward = tmp_path / "upward.py"
    upward.write_text("def f():\n    from actors.agent.loop import Agent\n    return Agent\n")
    assert breaches(upward, "learner") == ["actors"]


def test_nothing_imports_in_a_circle() -> None:
    assert circles(arrows(ROOT)) == []


def test_a_circle_among_files_would_be_seen_with_the_arrow_that_closes_it(tmp_path: Path) -> None:
    (tmp_path / "sandbox").mkdir()
    (tmp_path / "sandbox" / "a.py").write_text("from sandbox.b import f\n")
    (tmp_path / "sandbox" / "b.py").write_text("def f():\n    from sandbox import a\n    return a\n")
    assert circles(arrows(tmp_path)) == [
        "sandbox/b.py:2 imports sandbox/a.py closes a circle: sandbox/a.py -> sandbox/b.py -> sandbox/a.py",
    ]


def test_a_circle_among_folders_would_be_seen_where_no_file_is_in_one(tmp_path: Path) -> None:
    for name, text in {
        "up/a.py": "from sandbox.down.b import f\n",
        "down/b.py": "f = 1\n",
        "down/c.py": "from sandbox.up.d import g\n",
        "up/d.py": "g = 1\n",
    }.items():
        path = tmp_path / "sandbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert circles(arrows(tmp_path)) == [
        "sandbox/up/a.py:1 imports sandbox/down/b.py closes a circle: sandbox/down -> sandbox/up -> sandbox/down"
    ]


def test_no_room_is_crowded_and_each_says_what_it_is_for() -> None:
    folders = {path.parent for path in sources()} - {ROOT}
    crowded = {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > MOST_FILES}
    assert not crowded
    for folder in folders:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_the_ground_floor_loads_nothing_heavy() -> None:
    files = [path for path in sorted((ROOT / "protocol").rglob("*.py")) if path != ON_DEVICES]
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    script = f"import sys\n{chr(10).join(f'import {m}' for m in modules)}\nprint(sorted({HEAVY!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr
