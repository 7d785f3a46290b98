"""Which programs are read-only while tests run."""

from __future__ import annotations

from msgspec.structs import replace

from sandbox.judgement.sealing import PROGRAMS, interpreters, programs_of
from tests.sandbox.judgement.image import make_task


def test_programs_are_sealed_unless_the_tests_install_some() -> None:
    task = make_task()
    assert programs_of(task) == list(PROGRAMS)
    assert programs_of(replace(task, workdir="/opt/project")) == [place for place in PROGRAMS if place != "/opt"]
    for command in ("pip install -e . && pytest", "python setup.py develop; pytest", "make test", "npm test"):
        assert programs_of(replace(task, tests=replace(task.tests, command=command))) == []
    assert programs_of(replace(task, test_files={"/tests/test.sh": "uv pip install x"})) == []


def test_an_interpreter_elsewhere_is_sealed_where_nothing_else_is() -> None:
    task = make_task()
    assert interpreters(task, "/root/.pyenv/versions/3.11 /root /usr/local\n") == ["/root/.pyenv/versions/3.11"]
    assert interpreters(task, "/opt/conda/envs/testbed /root relative /\n") == []
    assert interpreters(replace(task, workdir="/srv/a/env/src"), "/srv/a/env") == []
