"""One screen of a run: progress, the loop with its rates, what holds it up, the last steps."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from console.run_data.run import bottleneck
from protocol.metrics import Values

_RECENT = 10  # steps from which the rest is estimated


def screen(
    title: str,
    num_steps: int,
    steps: Sequence[Values],
    system: Values,
    elapsed_s: float,
    *,
    waiting_for: str = "",
    warning: str = "",
    notes: Sequence[str] = (),
) -> Panel:
    """The whole; `steps` in their order, `system` the newest sample, `warning` the last watcher's line."""
    done = int(steps[-1]["step"]) if steps else 0
    bar = Table.grid(padding=(0, 1))
    left = remaining_s(num_steps, steps)
    estimate = f"about {clock(left).strip()} left" if left else ""
    bar.add_row(f"step {done}/{num_steps}", ProgressBar(max(num_steps, 1), done, width=50), clock(elapsed_s), estimate)
    part, sentence = bottleneck(system, list(steps)) if system else ("", "")
    parts: list[RenderableType] = [bar]
    if steps:
        parts += [Text("reward " + sparkline([r["reward_mean"] for r in steps if "reward_mean" in r]), style="green")]
        parts += [Text(describe_step(steps[-1]))]
    if system:
        parts += [_loop(part, system, steps[-1] if steps else {}), Text(sentence, style="bold")]
    if waiting_for:
        parts += [Text(f"waiting for {waiting_for}", style="yellow")]
    if warning:
        parts += [Text(warning, style="bold yellow")]
    parts += [Text(note, style="dim") for note in notes]
    return Panel(Group(*parts), title=escape(title), title_align="left")


def remaining_s(num_steps: int, steps: Sequence[Values]) -> float | None:
    """Seconds until the last step, if those to come take as long as the last ones did; None before the first."""
    recent = [step.get("wait_s", 0.0) + step.get("step_s", 0.0) for step in steps[-_RECENT:]]
    if not recent or not any(recent):
        return None
    return max(num_steps - int(steps[-1]["step"]), 0) * sum(recent) / len(recent)


def clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d} h" if minutes >= 60 else f"{minutes:3d}:{rest:02d}"


def _loop(part: str, system: Values, last: Values) -> Table:
    """Actors, generators, buffer, learner, with what goes between them; what holds them up is marked."""

    def value(name: str, of: Values = system) -> str:
        return short(of[name]) if name in of else "–"

    boxes = (
        (
            "actors",
            "actors",
            (f"{value('actors.episodes_executing')} executing", f"{value('actors.episodes_grading')} graded"),
        ),
        (
            "generators",
            "generators",
            (f"{value('actors.episodes_generating')} wait", f"{value('generator.tok_s')} tok/s"),
        ),
        (
            "replay",
            "buffer",
            (f"{value('actors.episodes_finished')} came", f"{value('replay.ready_trajectories')} ready"),
        ),
        ("learner", "learner", (f"version {value('replay.version')}", f"waited {value('wait_s', last)} s")),
    )
    table = Table.grid(padding=(0, 1))
    cells = []
    for name, label, lines in boxes:
        style = "bold yellow" if name == part else "bold"
        mark = " ◀ slowest" if name == part else ""
        cells += [Text.assemble((label + mark, style), *(f"\n{line}" for line in lines)), Text("→")]
    table.add_row(*cells[:-1])
    return table


def describe_step(record: Values) -> str:
    """One step in one line."""
    return "  ".join(
        f"{name} {short(record[key])}"
        for key, name in {
            "reward_mean": "reward",
            "loss_mean": "loss",
            "gradient_norm": "grad",
            "turns_mean": "turns",
            "staleness_mean": "staleness",
            "tokens": "tokens",
            "step_s": "step s",
            "wait_s": "waited s",
        }.items()
        if key in record
    )


def sparkline(values: list[float], width: int = 60) -> str:
    """The last `width` values as block characters, scaled between their own least and most."""
    shown = [v for v in values[-width:] if v == v]
    if not shown:
        return ""
    low, high = min(shown), max(shown)
    return "".join("▁▂▃▄▅▆▇█"[round((v - low) / (high - low or 1) * 7)] for v in shown) + f" {shown[-1]:.2f}"


def short(value: float) -> str:
    """A number in a few characters."""
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}"
