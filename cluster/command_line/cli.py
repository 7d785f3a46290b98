"""Flags and a TOML file -> `Settings`. Every mistake of the user is one line and exit status 2."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from actors.generator.engine import has_gpu
from cluster.command_line.help import help_text
from cluster.command_line.presets import Preset, gpus_gib, preset_for, under, with_split
from cluster.files.sources import description
from cluster.files.urls import is_url
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.section import expanded


class CommandLine(Settings, BaseSettings):
    """Longhaul: asynchronous reinforcement learning of software-engineering agents.

    Every setting below is a flag here and a key of the TOML file: `--learner.lr 1e-6` is `lr = 1e-6` under `[learner]`.
    Flags win over the file, the file over what suits the model (its preset), and that over the defaults.
    """

    model_config = SettingsConfigDict(
        cli_kebab_case=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_implicit_flags=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    config: Path | None = Field(default=None, exclude=True)
    """TOML file with settings (see configs/)."""
    dry_run: bool = Field(default=False, exclude=True)
    """Print the resolved settings and stop."""
    _from_preset: list[str] = PrivateAttr(default_factory=list)

    @property
    def from_preset(self) -> list[str]:
        """Settings that come from the model's preset, one a line with the reason."""
        return self._from_preset

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)  # no environment variables: a run is what its flags and file say


def parse(
    arguments: Sequence[str], program: str = "python launch.py", *, like: str | None = None
) -> tuple[Settings, CommandLine]:
    """The settings of this run, and the command line they came from.

    Args:
        like: the model to take the preset from where neither flags nor file name one.

    Raises:
        ConfigError: unknown key (with the nearest valid one), bad value, or unreadable file.
        SystemExit: after `--help`.
    """
    if "--help" in arguments or "-h" in arguments:
        print(help_text(CommandLine, program))
        raise SystemExit(0)
    known = set(setting_names())
    arguments = [_at_home(argument) for argument in arguments]
    _check_flags(arguments, known)
    _check_values(arguments)
    config = _flag(arguments, "--config", "a file")
    from_file = read_file(Path(config) if config is not None else None)
    model = _model_directory(arguments, from_file, like)
    preset = _preset_of(model, arguments, from_file)
    command_line = _merged(arguments, from_file, preset)
    if preset is not None:
        given = {*_flatten(from_file), *_flag_names(arguments)}
        split = with_split(preset, model, command_line, given, gpus_gib() if has_gpu() else [])
        if split is not preset:
            command_line = _merged(arguments, from_file, split)
        command_line._from_preset = list(split.lines(given))
    settings = Settings.model_validate(command_line.model_dump())
    return settings, command_line


def _merged(arguments: Sequence[str], from_file: Mapping[str, Any], preset: Preset | None) -> CommandLine:
    """Flags over the file over the preset. Raises `ConfigError`."""
    try:
        flags = CliSettingsSource[Any](CommandLine, cli_parse_args=list(arguments), cli_exit_on_error=False)
        return CommandLine(_cli_settings_source=flags, **(under(from_file, preset) if preset else from_file))
    except ValidationError as error:
        raise ConfigError(_one_line(error), kind="value") from error
    except Exception as error:
        if type(error).__name__ not in ("SettingsError", "ArgumentError"):
            raise
        raise ConfigError(str(error).removeprefix("error parsing CLI: "), kind="value") from error


def settings_of(content: Mapping[str, Any]) -> Settings:
    """Settings of nested tables, without flags. Raises `ConfigError` in one line."""
    try:
        return Settings.model_validate(content)
    except ValidationError as error:
        raise ConfigError(_one_line(error), kind="value") from error


def setting_names(model: type[BaseModel] = CommandLine, prefix: str = "") -> Iterator[str]:
    """Every valid dotted key, in the order of declaration; sections themselves included."""
    for name, field in model.model_fields.items():
        key = prefix + name
        yield key
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from setting_names(field.annotation, key + ".")


def run_command_line(arguments: Sequence[str], program: str) -> tuple[Settings, CommandLine]:
    """`parse`, with mistakes printed as one line and turned into exit status 2."""
    try:
        return parse(arguments, program)
    except ConfigError as error:
        exit_with(error)


def exit_with(error: ConfigError) -> NoReturn:
    """Print the user's mistake as one line and leave with status 2."""
    print(f"{program_name()}: {error}", file=sys.stderr)
    raise SystemExit(2)


def program_name() -> str:
    """What the user called: `launch.py` or `longhaul`."""
    return Path(sys.argv[0]).name


def _check_flags(arguments: Sequence[str], known: set[str]) -> None:
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        flag = argument.split("=", 1)[0][2:]
        key = flag.replace("-", "_")
        if key in known or key.removeprefix("no_") in known:
            continue
        nearest = _nearest(key, known).replace("_", "-")
        raise ConfigError(f"unknown setting --{flag}: did you mean --{nearest}?", kind="unknown")


def _check_values(arguments: Sequence[str]) -> None:
    """An empty value is a shell variable that is not set, and would be taken for the default."""
    for index, argument in enumerate(arguments):
        flag, assigned, value = argument.partition("=")
        is_empty = not value if assigned else list(arguments[index + 1 : index + 2]) == [""]
        if argument.startswith("--") and is_empty and _default(flag[2:]) != "":
            raise ConfigError(f"{flag} has an empty value: leave it out, or give one", kind="value")


def _default(flag: str) -> Any:
    value: Any = Settings()
    for name in flag.replace("-", "_").split("."):
        value = getattr(value, name, None)
    return value


def _at_home(value: Any) -> Any:
    """`value` with every path in it that begins with `~/` written out. A shell does it for `--run-dir ~/x`, and neither
    for `--run-dir=~/x` nor in a file. Raises `ConfigError`."""
    if isinstance(value, dict):
        return {name: _at_home(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_at_home(inner) for inner in value]
    if not isinstance(value, str):
        return value
    flag, assigned, path = value.partition("=") if value.startswith("--") else ("", "", value)
    return f"{flag}{assigned}{expanded(path)}" if path.startswith("~/") else value


def _nearest(key: str, known: set[str]) -> str:
    return difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]


def _flag(arguments: Sequence[str], flag: str, kind: str = "a value") -> str | None:
    """The value of a flag, as typed: of the last one, as the parser has it."""
    value = None
    for index, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        if argument == flag:
            if index + 1 == len(arguments):
                raise ConfigError(f"{flag} needs {kind}", kind="value")
            value = arguments[index + 1]
    return value


def _flag_names(arguments: Sequence[str]) -> set[str]:
    typed = {argument.partition("=")[0][2:].replace("-", "_") for argument in arguments if argument.startswith("--")}
    return typed | {name.removeprefix("no_") for name in typed}


def _model_directory(arguments: Sequence[str], from_file: Mapping[str, Any], like: str | None) -> Path:
    """Where the model is described; of one at a URL that is brought here. Raises `ConfigError`."""
    named = _flag(arguments, "--model.path") or _in_file(from_file, "path") or like
    if not isinstance(named, str) or not is_url(named):
        return Path(named if isinstance(named, str) else Settings().model.path)
    given = _merged(arguments, from_file, None)
    return description(named, given.tasks.cache_dir, given.hosts.fetch_s)


def _preset_of(model: Path, arguments: Sequence[str], from_file: Mapping[str, Any]) -> Preset | None:
    context = _flag(arguments, "--model.max-context") or _in_file(from_file, "max_context")
    try:
        asked = int(context) if context else None
    except (TypeError, ValueError):  # the parser says so
        return None
    return preset_for(model, asked, on_gpu=has_gpu())


def _in_file(from_file: Mapping[str, Any], name: str) -> Any:
    table = from_file.get("model")
    return table.get(name) if isinstance(table, Mapping) else None


def read_file(path: Path | None) -> dict[str, Any]:
    """A settings file as nested tables; nothing of None. Raises `ConfigError` for what is no such file, or holds a name
    that is no setting's."""
    if path is None:
        return {}
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}", kind="file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}", kind="file") from error
    if isinstance(content.get("tasks"), list):  # `[[tasks]]`: a mixture
        content["tasks"] = {"sources": content["tasks"]}
    known = set(setting_names())
    for key in _flatten(content):
        if key not in known:
            raise ConfigError(f"unknown setting {key} in {path}: did you mean {_nearest(key, known)}?", kind="unknown")
    written: dict[str, Any] = _at_home(content)
    return written


def _flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _one_line(error: ValidationError) -> str:
    parts = []
    for detail in error.errors():
        where = ".".join(str(part) for part in detail["loc"]).replace("_", "-")
        what = detail["msg"].removeprefix("Value error, ")
        parts.append(f"--{where}: {what} (got {detail['input']!r})" if where else what)
    return "; ".join(parts)
