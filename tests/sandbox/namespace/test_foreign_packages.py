"""A sandbox shows the standard library alone, and a task whose package is in sight all the same is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol.errors import TaskError
from sandbox.base import Backend, SandboxSpec
from sandbox.namespace.foreign_packages import foreign_packages, refuse_visible
from sandbox.tasks.sources import packages_of
from sandbox.tasks.task import Task, TestSpec


def write(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


def test_every_place_of_packages_is_covered_and_the_rest_is_known(tmp_path: Path) -> None:
    write(
        tmp_path / "usr",
        "lib/python3.11/json/__init__.py",
        "lib/python3.11/this.py",
        "lib/python3.11/site-packages/xmltodict.py",
        "lib/python3.11/ensurepip/_bundled/pip-1.whl",
        "lib/python3/dist-packages/yaml/__init__.py",
        "local/lib/python3.12/dist-packages/x.py",
        "share/python-wheels/pip-1.whl",
        "lib/tool/lib/third_party/attr/__init__.py",
        "lib/tool/wheels/click-8.whl",
        "lib/tool/pylib/packaging/__init__.py",
        "lib/tool/pylib/packaging/inner/__init__.py",
        "lib/tool/alone.py",
    )
    write(tmp_path / "conda", "pkgs/a/x.py", "envs/b/lib/y.py", "lib/python3.11/os.py")
    homes = [tmp_path / "usr", tmp_path / "conda"]
    found = foreign_packages(homes, homes)
    assert {str(Path(place).relative_to(tmp_path)) for place in found.hidden} == {
        "usr/lib/python3.11/site-packages",
        "usr/lib/python3.11/ensurepip/_bundled",
        "usr/lib/python3/dist-packages",
        "usr/local/lib/python3.12/dist-packages",
        "usr/share/python-wheels",
        "usr/lib/tool/lib/third_party",
        "usr/lib/tool/wheels",
        "conda/pkgs",
        "conda/envs",
    }
    assert set(found.visible) == {"packaging", "alone"}


def test_a_package_in_sight_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "pluggy/__init__.py", "six.py")
    refuse_visible(["attrs"], [tmp_path], {"packaging": "/usr/x"}, "l")
    for name in ("json", "packaging", "pluggy", "six"):
        with pytest.raises(TaskError, match=name):
            refuse_visible([name], [tmp_path], {"packaging": "/usr/x"}, "l")


def test_what_a_task_is_about() -> None:
    paths = ("src/boltons/iterutils.py", "tests/test_x.py", "xmltodict.py", "docs/conf.txt", "setup.py")
    gold = "".join(f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-a\n+b\n" for path in paths)
    task = Task(
        task_id="t/1",
        source="injected",
        repository="r",
        issue="i",
        fail_to_pass=("t",),
        sdist="boltons==25.0.0",
        gold_patch=gold,
        tests=TestSpec(import_paths=("src", ".")),
    )
    assert packages_of(task) == ("boltons", "xmltodict")


async def test_nothing_but_the_standard_library(namespace_backend: Backend, run_name: str) -> None:
    look = (
        'for m in pip setuptools pytest msgspec yaml; do python3 -c "import $m" 2>/dev/null && echo has $m; done;'
        " for p in /usr/bin/python3 /usr/local/bin/python3; do"
        " [ -x $p ] && $p -c 'import pip, yaml' 2>/dev/null && echo $p; done;"
        " find / -xdev \\( -name '*.whl' -o -name '*.egg' -o -name '*.conda' \\) 2>/dev/null;"
        " find / \\( -name site-packages -o -name dist-packages \\) -not -empty 2>/dev/null;"
        " python3 -c 'import json, sqlite3, ssl; print(\"fine\")'"
    )
    async with await namespace_backend.create(SandboxSpec(run=run_name, lease="l")) as sandbox:
        assert (await sandbox.exec(look, timeout=60)).text == "fine\n"


async def test_a_task_whose_package_is_in_sight_is_refused_at_the_start(
    namespace_backend: Backend, run_name: str
) -> None:
    with pytest.raises(TaskError, match=r"json.*outside its tree"):
        await namespace_backend.create(SandboxSpec(run=run_name, lease="l", absent_packages=("json",)))
