"""Where metrics go, all at once; what cannot be written costs the record, never the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from protocol.metrics import Sink, Values


class AllSinks:
    """A `Sink` of several. Says once that a disk takes no more, and once that it does again.

    Args:
        note: takes a line for whoever watches the run.
    """

    def __init__(self, sinks: Sequence[Sink], note: Callable[[str], None]) -> None:
        self._sinks, self._note = sinks, note
        self._failing: set[int] = set()

    def write(self, kind: str, values: Values, step: int) -> None:
        """See `Sink.write`."""
        for number, sink in enumerate(self._sinks):
            try:
                sink.write(kind, values, step)
            except OSError as error:
                if not self._failing:
                    self._note(f"metrics are not written: {error.strerror or error}. The run goes on without them")
                self._failing.add(number)
            else:
                if number in self._failing:
                    self._failing.discard(number)
                    if not self._failing:
                        self._note("metrics are written again")

    def close(self) -> None:
        """See `Sink.close`."""
        for sink in self._sinks:
            sink.close()
