"""The table of commands against what it names; what is typed against what is called."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.front_door.main import main, nearest, overview
from cluster.front_door.table import COMMANDS, GROUPS, Command

ROOT = Path(__file__).parents[3]
HEAVY = ("torch", "vllm", "ray", "transformers", "deepspeed", "pydantic", "numpy")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_names_a_function_that_takes_arguments_and_the_programs_name(command: Command) -> None:
    module, _, function = command.target.partition(":")
    parameters = list(inspect.signature(getattr(importlib.import_module(module), function)).parameters.values())
    assert [p.name for p in parameters[:2]] == ["arguments", "program"]
    assert all(p.default is not p.empty for p in parameters[2:])
    for example in command.examples:
        assert example.line.startswith("longhaul ")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_teaches_by_example_before_it_explains(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = main([*command.name.split(), "--help"])
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    shown = capsys.readouterr().out
    assert status == 0
    own = re.findall(rf"^  (longhaul {command.name}(?: .*)?)$", shown, re.MULTILINE)
    assert own, shown
    assert f"usage: longhaul {command.name}" in shown
    for line in own:
        assert shlex.split(line)


def test_names_are_unique_and_no_command_hides_another() -> None:
    names = [command.name for command in COMMANDS]
    assert len(set(names)) == len(names)
    assert not {name for name in names if any(other.startswith(f"{name} ") for other in names)}
    assert {name.split()[0] for name in names if " " in name} == set(GROUPS)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("rnu", "run"),
        ("evaluate", "eval"),
        ("validate", "tasks validate"),
        ("task bild", "tasks build"),
        ("shwo", "show"),
    ],
)
def test_a_wrong_command_suggests_the_nearest(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert nearest(typed.split()) == meant
    assert main([*typed.split(), "--flag"]) == 2
    assert f"did you mean `longhaul {meant}`?" in capsys.readouterr().err


def test_a_wrong_command_of_a_group_is_not_the_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "buidl", "x"]) == 2
    assert "no command `tasks buidl`: did you mean `longhaul tasks build`?" in capsys.readouterr().err


def test_without_a_command_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == f"{overview(COMMANDS)}\n" * 2
    assert main(["tasks"]) == 2
    assert main(["tasks", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "longhaul tasks build" in shown
    assert "longhaul run " not in shown.partition("`longhaul COMMAND")[0]


def test_arguments_arrive_as_they_were_typed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["run", "--steps", "7", "--dry-run"]) == 0
    assert '"steps": 7' in capsys.readouterr().out
    assert main(["eval", "--dry-run"]) == 0
    assert '"phase": "eval"' in capsys.readouterr().out
    assert main(["show", str(tmp_path)]) == 2
    assert "found none" in capsys.readouterr().err
    assert main(["tasks", "validate", str(tmp_path / "no.jsonl"), "--out", str(tmp_path / "x")]) == 2


def test_an_evaluation_has_one_phase(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["eval", "--phase", "rl"])
    assert stopped.value.code == 2
    assert "longhaul run" in capsys.readouterr().err


def test_help_loads_nothing_heavy_and_knows_its_name() -> None:
    script = (
        "import sys; from cluster.front_door.main import main; main(['--help'])\n"
        f"assert not set(sys.modules) & set({HEAVY!r}), set(sys.modules) & set({HEAVY!r})"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60, stdout=subprocess.DEVNULL)
    wrong = [sys.executable, "-m", "cluster.front_door", "run", "--num-actor", "4"]
    done = subprocess.run(wrong, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "longhaul: unknown setting --num-actor: did you mean --num-actors?\n"


@pytest.mark.parametrize("typed", ["--help", "run --help", "plan --help"])
def test_a_reader_that_has_read_enough_is_no_error(typed: str) -> None:
    script = f"{sys.executable} -m cluster.front_door {typed} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")
