"""What a person sees while the run works: one live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from protocol.metrics import Values


class Progress(Protocol):
    """Shows a run to a person."""

    def note(self, text: str) -> None:
        """Something happened."""
        ...

    def sample(self, values: Values, waiting_for: str) -> None:
        """The state of the whole system now."""
        ...

    def step(self, record: Values) -> None:
        """An optimizer step was taken."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def open_progress(num_steps: int, title: str) -> Progress:
    """The live screen on a terminal, lines elsewhere."""
    console = Console()
    return LiveProgress(num_steps, title, console) if console.is_terminal else LineProgress(num_steps)


class LineProgress:
    """One line for every step and every note."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        print(f"[{time.monotonic() - self._started:6.1f} s] {text}", flush=True)

    def sample(self, values: Values, waiting_for: str) -> None:
        pass

    def step(self, record: Values) -> None:
        self.note(f"step {int(record['step'])}/{self._num_steps}  {describe_step(record)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveProgress:
    """One screen: steps, the last step, the system now, the last notes."""

    def __init__(self, num_steps: int, title: str, console: Console) -> None:
        self._num_steps, self._title = num_steps, title
        self._started = time.monotonic()
        self._notes: list[str] = []
        self._steps: list[Values] = []
        self._system: Values = {}
        self._waiting_for = ""
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def note(self, text: str) -> None:
        self._notes = [*self._notes[-4:], f"{self._elapsed()}  {text}"]

    def sample(self, values: Values, waiting_for: str) -> None:
        self._system, self._waiting_for = values, waiting_for

    def step(self, record: Values) -> None:
        self._steps.append(record)

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        return f"{minutes:3d}:{seconds:02d}"

    def _render(self) -> Panel:
        done = int(self._steps[-1]["step"]) if self._steps else 0
        bar = Table.grid(padding=(0, 1))
        bar.add_row(f"step {done}/{self._num_steps}", ProgressBar(self._num_steps, done, width=50), self._elapsed())
        parts: list[Table | Text] = [bar]
        if self._steps:
            parts += [Text("reward " + sparkline([r["reward_mean"] for r in self._steps]), style="green")]
            parts += [Text(describe_step(self._steps[-1]))]
        parts += [self._system_table()]
        if self._waiting_for:
            parts += [Text(f"waiting for {self._waiting_for}", style="yellow")]
        parts += [Text(note, style="dim") for note in self._notes]
        return Panel(Group(*parts), title=self._title, title_align="left")

    def _system_table(self) -> Table:
        table = Table.grid(padding=(0, 3))
        cells = [f"{name} [bold]{_short(self._system[key])}[/]" for key, name in SHOWN.items() if key in self._system]
        for start in range(0, len(cells), 4):
            table.add_row(*cells[start : start + 4])
        return table


SHOWN = {
    "replay.version": "version",
    "actors.episodes_running": "running",
    "actors.episodes_generating": "generating",
    "actors.episodes_executing": "executing",
    "actors.episodes_grading": "grading",
    "actors.episodes_finished": "finished",
    "actors.episodes_failed": "failed",
    "replay.buffer_fill": "buffered",
    "generator.tok_s": "tokens/s",
}
"""System metrics of the live screen, and what they are called there."""


def describe_step(record: Values) -> str:
    """One step in one line."""
    return "  ".join(
        f"{name} {_short(record[key])}"
        for key, name in {
            "reward_mean": "reward",
            "loss": "loss",
            "grad_norm": "grad",
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


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.3g}"
