"""A file imports only from its own floor's package or from below; `protocol/` loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "protocol": set(),
    "sandbox": {"protocol"},
    "actors": {"protocol", "sandbox"},
    "learner": {"protocol"},
    "cluster": {"protocol", "sandbox", "actors", "learner"},
    "tiny": {"protocol", "sandbox", "actors", "learner", "cluster"},
    "benchmarks": {"protocol", "sandbox", "actors", "learner", "cluster", "tiny", "launch"},
    "launch": {"protocol", "sandbox", "actors", "learner", "cluster"},
}
HEAVY = {"torch", "vllm", "ray", "transformers", "deepspeed"}
ON_DEVICES = ROOT / "protocol" / "broadcast.py"  # spoken between processes that hold weights; nothing below loads it


def sources():
    yield ROOT / "launch.py"
    for package in MAY_IMPORT:
        yield from sorted((ROOT / package).rglob("*.py"))


def imported_packages(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module.split(".")[0]


def breaches(path: Path, package: str):
    allowed = MAY_IMPORT[package] | {package}
    return sorted(name for name in set(imported_packages(path)) if name in MAY_IMPORT and name not in allowed)


@pytest.mark.parametrize("path", list(sources()), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path):
    package = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert not breaches(path, package)
    if package == "protocol" and path != ON_DEVICES:
        assert "protocol.broadcast" not in path.read_text()
        assert not HEAVY & set(imported_packages(path))


def test_a_breach_would_be_seen(tmp_path):
    upward = tmp_path / "upward.py"
    upward.write_text("def f():\n    from actors.agent import Agent\n    return Agent\n")
    assert breaches(upward, "learner") == ["actors"]


def test_the_ground_floor_loads_nothing_heavy():
    modules = sorted(p.stem for p in (ROOT / "protocol").glob("*.py") if p.stem != "__init__" and p != ON_DEVICES)
    script = (
        f"import sys\n{chr(10).join(f'import protocol.{m}' for m in modules)}\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert shown.stdout.strip() == "[]", shown.stderr
