from pathlib import Path

import pytest

from cluster.command_line.cli import CommandLine, parse, setting_names
from cluster.command_line.help import help_text
from protocol.config import Settings
from protocol.errors import ConfigError


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("num_actors = 7\n[learner]\nlr = 0.1\nwarmup_steps = 3\n[learner.loss]\neps_high = 0.28\n")
    settings, command_line = parse(["--config", str(file), "--learner.lr", "1e-6", "--dry-run"])
    assert (settings.num_actors, settings.learner.lr, settings.learner.warmup_steps) == (7, 1e-6, 3)
    assert settings.learner.loss.eps_high == 0.28
    assert settings.replay == Settings().replay
    assert command_line.dry_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-actor", "3"], "did you mean --num-actors"),
        (["--learner.lrr", "3"], "did you mean --learner.lr"),
        (["--num-actors", "-1"], "--num-actors: Input should be greater than 0"),
        (["--num-actors=0"], "greater than 0"),
        (["--steps", "many"], "--steps"),
        (["--learner.zero-stage", "7"], "--learner.zero-stage"),
        (["--replay.batch", "9"], "multiple of replay.group_size"),
        (["--phase", "eval", "--eval.model", "models/mine"], "a model directory is given as model.path"),
        (["--phase", "eval", "--eval.endpoint", "http://localhost:8000/v1"], "go together"),
        (["--config", "/does/not/exist.toml"], "cannot read --config"),
        (["--config"], "needs a file"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_the_file_names_the_file_and_the_nearest_key(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[sandbox]\nbackends = 'docker'\n")
    with pytest.raises(ConfigError, match=r"sandbox\.backends in .*c\.toml: did you mean sandbox\.backend\?"):
        parse(["--config", str(file)])


def test_settings_are_a_message():
    settings, _ = parse(["--learner.betas", "0.9,0.95", "--sandbox.docker-hosts", "unix:///a"])
    assert Settings.model_validate_json(settings.model_dump_json()) == settings


def test_every_setting_explains_itself(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for name in setting_names():
        assert f"--{name.replace('_', '-')}" in shown or "." not in name
    for model in _sections(Settings):
        undocumented = [
            name for name, field in model.model_fields.items() if not field.description and not _is_section(field)
        ]
        assert not undocumented, f"{model.__name__}: {undocumented}"


@pytest.mark.parametrize("width", [80, 100, 120])
def test_help_fits_the_terminal(width):
    assert max(map(len, help_text(CommandLine, "longhaul run", width).splitlines())) <= width


def _is_section(field):
    return isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields")


def _sections(model):
    yield model
    for field in model.model_fields.values():
        if _is_section(field):
            yield from _sections(field.annotation)


@pytest.mark.parametrize("arguments", [["--eval.tasks", ""], ["--eval.tasks="], ["--run-dir", ""], ["--model.path="]])
def test_an_empty_value_is_not_taken_for_the_default(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"--[\w.-]+ has an empty value"):
        parse(arguments)


def test_a_path_at_home_is_one_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.toml").write_text('run_dir = "~/runs/x"\n[[tasks]]\nsource = "~/tasks.jsonl"\n')
    settings, _ = parse(["--config=~/run.toml", "--resume=~/runs/x/checkpoints/step-1"])
    assert settings.run_dir == tmp_path / "runs" / "x"
    assert settings.resume == f"{tmp_path}/runs/x/checkpoints/step-1"
    assert settings.tasks.sources[0].source == f"{tmp_path}/tasks.jsonl"


@pytest.mark.parametrize("flag", ["--learner.lr", "--replay.give-up-s", "--sandbox.cpus"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_a_number_without_an_end_is_refused(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag}: "):
        parse([flag, value])


def test_a_weight_without_an_end_would_take_every_draw(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[[tasks]]\nsource = "micro"\nweight = inf\n')
    with pytest.raises(ConfigError, match="weight: "):
        parse(["--config", str(tmp_path / "run.toml")])
