"""What a person sees while the run works: one live screen on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Protocol, Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel

from cluster.reporting.screen import clock, describe_step, screen
from protocol.metrics import Values


class Progress(Protocol):
    """Shows a run to a person."""

    def note(self, text: str) -> None:
        """Something happened."""
        ...

    def warn(self, text: str) -> None:
        """A watcher saw something."""
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

    def warn(self, text: str) -> None:
        self.note(text)

    def sample(self, values: Values, waiting_for: str) -> None:
        pass

    def step(self, record: Values) -> None:
        self.note(f"step {int(record['step'])}/{self._num_steps}  {describe_step(record)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LiveProgress:
    """One screen that renews itself."""

    def __init__(self, num_steps: int, title: str, console: Console) -> None:
        self._num_steps, self._title = num_steps, title
        self._started = time.monotonic()
        self._notes: list[str] = []
        self._steps: list[Values] = []
        self._system: Values = {}
        self._waiting_for = self._warning = ""
        self._live = Live(console=console, refresh_per_second=4, get_renderable=self._render)

    def note(self, text: str) -> None:
        self._notes = [*self._notes[-4:], f"{clock(time.monotonic() - self._started)}  {text}"]

    def warn(self, text: str) -> None:
        self._warning = text

    def sample(self, values: Values, waiting_for: str) -> None:
        self._system, self._waiting_for = values, waiting_for

    def step(self, record: Values) -> None:
        self._steps = [*(earlier for earlier in self._steps if earlier["step"] < record["step"]), record]

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.__exit__(None, None, None)

    def _render(self) -> Panel:
        return screen(
            self._title,
            self._num_steps,
            self._steps,
            self._system,
            time.monotonic() - self._started,
            waiting_for=self._waiting_for,
            warning=self._warning,
            notes=self._notes,
        )
