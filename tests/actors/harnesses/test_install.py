"""Agents' files: installed once, whole or not at all, and a registry that cannot be had is said in one line."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from actors.harnesses.install import npm_packages
from actors.harnesses.table import RELEASED
from protocol.errors import ConfigError

NPM = """#!/bin/sh
while [ "$1" != --prefix ]; do shift; done
echo "once" >> "$2/../../../calls"
mkdir -p "$2/node_modules/agent" && echo 'console.log(1)' > "$2/node_modules/agent/run.js"
"""


@pytest.fixture
def npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that is found in npm's place."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "npm"
    program.write_text(NPM)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return program


def test_files_are_installed_once_however_many_ask(npm: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: npm_packages(cache, "agent", ["agent@1.0"]), range(4)))
    assert len(set(found)) == 1 and (found[0] / "node_modules" / "agent" / "run.js").is_file()
    assert (cache / "calls").read_text() == "once\n"
    assert npm_packages(cache, "agent", ["agent@1.1"]) != found[0]


def test_half_an_installation_is_none(npm: Path, tmp_path: Path) -> None:
    npm.write_text("#!/bin/sh\necho no such host >&2; exit 7\n")
    with pytest.raises(ConfigError, match=r"agent could not be installed .*no such host"):
        npm_packages(tmp_path / "cache", "agent", ["agent@1.0"])
    assert [path.name for path in (tmp_path / "cache" / "agents" / "agent").iterdir()] == [
        "agent@1.0.lock".replace("@", "_")
    ]


def test_every_released_agent_is_pinned() -> None:
    for make in RELEASED.values():
        for pin in make.pins:
            assert pin.rpartition("@")[2].rpartition("==")[2][0].isdigit(), pin
