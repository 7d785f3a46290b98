"""A test run whose time ran out: was it the tests' own time, or did others on the host have the processors meanwhile?

What a run had is its wall time less the time in which it was ready to run and did not, as the kernel tells the guest.
Tests that sleep, wait or spin of themselves have their time on any host: the run ends as a fail. A run that had less is
made once more with as much more wall time as the first one lost, and if that one had less, too, the place failed, not
the patch. So nothing is run for ever, and no patch earns a third run by being slow.
"""

from __future__ import annotations

from protocol.errors import GradingError
from sandbox.base import ExecResult

_LEAST_SHARE_LOST = 1 / 3
"""Of the wall time: below that, a run twice as fast would have had to be short of time as well."""
_MOST_CPU_SHARE = 2 / 3
"""Of the processor that a sandbox may use: what ran more was held back by its own limit, or by itself."""
_ENOUGH = 0.9
_MARGIN = 1.25
_MOST_TIMES = 4.0
"""The second run's deadline, against the first one's, is at most this: a host that is busier can judge nothing."""


class StarvedError(GradingError):
    """The tests did not end in time, and did not have it.

    Attributes:
        had_s: wall time less what was lost.
        longer: by how much more time a further run should be given to have it.
    """

    def __init__(self, result: ExecResult, timeout_s: float) -> None:
        self.had_s = result.duration_s - result.waited_s
        self.longer = min(_MOST_TIMES, _MARGIN * result.duration_s / max(self.had_s, 1e-3))
        super().__init__(
            f"the tests did not end in time on a starved host: of {result.duration_s:.0f} s they waited "
            f"{result.waited_s:.0f} s for a processor and ran {result.cpu_s:.0f} s, {timeout_s:.0f} s being their time",
            kind="starved",
        )


def check_had_time(result: ExecResult, timeout_s: float, cpus: float) -> None:
    """Of a run of tests that did not end in time.

    Args:
        timeout_s: how much time they are to have.
        cpus: processors that the sandbox may use.

    Raises:
        StarvedError: others had the processors meanwhile.
    """
    lost = min(result.waited_s, result.duration_s)
    is_held_back = result.cpu_s >= _MOST_CPU_SHARE * min(1.0, cpus) * result.duration_s
    if is_held_back or lost < _LEAST_SHARE_LOST * result.duration_s:
        return
    if result.duration_s - lost < _ENOUGH * timeout_s:
        raise StarvedError(result, timeout_s)
