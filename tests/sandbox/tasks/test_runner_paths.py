"""What decides how tests are found and run, kind by kind, is not a patch's to bring."""

from __future__ import annotations

import pytest

from sandbox.judgement.protection import allowed_changes
from sandbox.patches import Change
from sandbox.tasks.runner_paths import kind_of_configuration, shadows_a_tool
from sandbox.tasks.task import Task

KINDS = {
    "configuration of a runner": (
        *("conftest.py", "pkg/conftest.py", "conftest/__init__.py", "conftest.pyc", "pytest.ini", ".pytest.ini"),
        *("a/pytest.toml", ".pytest.toml", "tox.ini", "toxfile.py", "noxfile.py", "setup.cfg", "pyproject.toml"),
        *("nose.cfg", ".noserc", "nose2.cfg", "unittest.cfg", "behave.ini", ".behaverc", ".stestr.conf", ".coveragerc"),
        *("Makefile", "GNUmakefile", "tests/runtests.py", "run_tests.sh", ".hypothesis/x", "green.cfg"),
    ),
    "start-up hook": (
        *(
            "sitecustomize.py",
            "pkg/usercustomize.py",
            "sitecustomize/__init__.py",
            "sitecustomize.pyc",
            "usercustomize",
        ),
        *("sitecustomize.cpython-311-x86_64-linux-gnu.so", "a.pth", "lib/python311._pth", "pyvenv.cfg"),
    ),
    "metadata of an installed distribution": (
        *("evil-1.0.dist-info/entry_points.txt", "evil.egg-info", "evil.egg-info/PKG-INFO", "evil.egg", "a.egg-link"),
        *("entry_points.txt", "__editable__.evil", "src/evil-1.dist-info/METADATA"),
    ),
    "attributes, filters or modules of git": (".gitattributes", "pkg/.gitattributes", ".gitmodules", ".gitconfig"),
    "file of an environment": (".env", ".env.local", ".envrc", ".flaskenv", "pip.conf", ".pypirc", "x/.bashrc"),
    "installed environment": (".venv/bin/python", "venv/x", ".tox/py/x", ".nox/x", "a/site-packages/x.py", ".eggs/x"),
    "compiled code": (
        *("__pycache__/mod.cpython-311.pyc", "pkg/mod.pyc", "pkg/mod.so", "mod.cpython-311-x86_64-linux-gnu.so"),
        *("pkg/mod.abi3.so", "m.pyo"),
    ),
}
ORDINARY = (
    *("pkg/mod.py", "setup.py", ".gitignore", ".github/workflows/x.yml", "docs/conf.py", "pkg/pytest_tools.py"),
    *("pkg/json.py", "pkg/environment.py", "env.py", "Dockerfile", "pkg/Makefile.in", "src/pkg/site.py", "README.md"),
    *("pkg/settings.cfg", "pkg/so.py", "pkg/data.ini", "CHANGES", "manage.py"),
    *("cmd/main.go", "src/types/index.ts", "lib/http/server.js", "token/token.rs"),
)
SHADOWS = (
    *("pytest.py", "pytest/__init__.py", "_pytest/runner.py", "pluggy.py", "json.py", "json/__init__.py", "select.py"),
    *("src/unittest/__init__.py", "lib/os.py", "python/re.py", "coverage.py", "nose/plugins.py", "pytest_evil.py"),
    *("mock.py", "exceptiongroup/__init__.py", "_socket.py"),
)


@pytest.mark.parametrize(("kind", "path"), [(kind, path) for kind, paths in KINDS.items() for path in paths])
def test_every_kind_is_known(kind: str, path: str) -> None:
    assert kind_of_configuration(path) == kind
    change = Change(path=path, kind="file", content=b"x")
    assert allowed_changes(TASK, [change]) == ([], [path])
    assert allowed_changes(TASK, [Change(path=path, kind="deleted")]) == ([], [path])


@pytest.mark.parametrize("path", SHADOWS)
def test_no_module_stands_in_for_a_tool(path: str) -> None:
    assert kind_of_configuration(path) == ""
    assert shadows_a_tool(path, (".", "python"), ())
    assert not shadows_a_tool(f"pkg/{path}", (".", "python"), ())
    assert not shadows_a_tool(path, (".", "python"), (path,)), "a project may have such a module itself"


@pytest.mark.parametrize("path", ORDINARY)
def test_ordinary_paths_are_taken(path: str) -> None:
    change = Change(path=path, kind="file", content=b"x")
    assert allowed_changes(TASK, [change]) == ([change], [])


def test_a_project_of_a_tools_name_can_be_worked_on() -> None:
    gold = "--- a/src/_pytest/runner.py\n+++ b/src/_pytest/runner.py\n@@ -1 +1 @@\n-a\n+b\n"
    changes = [Change(path=f"src/_pytest/{name}.py", kind="file") for name in ("runner", "other")]
    task = Task(task_id="t", source="swe-bench", repository="r", issue="", fail_to_pass=("t",), gold_patch=gold)
    assert allowed_changes(task, changes) == (changes, [])


TASK = Task(task_id="t", source="swe-bench", repository="r", issue="", fail_to_pass=("t",), image="i")
