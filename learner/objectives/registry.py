"""The table of objectives: every file of `table/`, found by its name.

Settings accept these names (`protocol/objectives.py` lists the same folder), `--help` shows their first lines, the
tests run over them, and `python -m learner.objectives` prints the table of docs/65-objectives.md.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cache
from importlib import import_module

from learner.objectives.parts.objective import Objective
from protocol.config import LossSettings, Settings
from protocol.errors import ConfigError
from protocol.objectives import known_objective, objectives


@dataclass(frozen=True)
class Row:
    """One objective and what its file says of it."""

    name: str
    summary: str
    formula: str
    source: str
    objective: Objective


def objective_named(name: str) -> Objective:
    """The objective of that name; raises `ValueError` naming the nearest one."""
    return _row(known_objective(name)).objective


def checked_objective(loss: LossSettings) -> Objective:
    """The objective of these settings; raises `ConfigError` where an option has no place in it."""
    objective = objective_named(loss.name)
    if loss.truncate_importance is not None and objective.corrects:
        raise ConfigError(
            f"--learner.loss.truncate-importance does not go with {loss.name}, which weighs or masks tokens by learner "
            "against sampler itself: leave it out, or take another objective",
            kind="value",
        )
    if loss.format_penalty and objective.targets is not None:
        raise ConfigError(
            f"--learner.loss.format-penalty does not go with {loss.name}: a value is learned from whole returns, "
            "and this is added to advantages",
            kind="value",
        )
    if objective.needs_reference and loss.reference is None and loss.reference_endpoint is None:
        raise ConfigError(
            f"{loss.name} needs --learner.loss.reference, the model directory of the teacher, or its "
            "--learner.loss.reference-endpoint",
            kind="value",
        )
    return objective


def needs_reference(loss: LossSettings) -> bool:
    """Whether a reference policy is asked for log-probs."""
    return bool(loss.kl_coef) or objective_named(loss.name).needs_reference


def averaging_of(loss: LossSettings) -> str:
    """How tokens are averaged: as the settings say, or as the objective does."""
    return loss.averaging or objective_named(loss.name).averaging


def rows() -> list[Row]:
    """The whole table, by name."""
    return [_row(name) for name in objectives()]


def loss_settings(settings: Settings) -> LossSettings:
    """The loss settings of the phase: `rft` replaces the objective and keeps the rest."""
    loss = settings.learner.loss
    return loss.model_copy(update={"name": "rft"}) if settings.phase == "rft" else loss


def markdown() -> str:
    """The docs' table."""
    lines = ["| name | what it is | advantages | average over | settings it reads | source |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for row in rows():
        advantages = row.objective.advantages.__name__.replace("_", " ")
        reads = ", ".join(f"`{name}`" for name in row.objective.reads)
        cells = (f"`{row.name}`", row.summary, advantages, row.objective.averaging, reads, row.source)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@cache
def _row(name: str) -> Row:
    module = import_module(f"learner.objectives.table.{name}")
    summary, formula, source, *_ = inspect.cleandoc(module.__doc__ or "").split("\n\n")
    return Row(name, summary, formula, " ".join(source.removeprefix("Source: ").split()), module.OBJECTIVE)
