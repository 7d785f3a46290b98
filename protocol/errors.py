"""Errors named by the boundary that was crossed.

Every error carries a `kind`: a short stable label that metrics count and that crosses the wire instead of the exception
itself (an exception named by a peer is never rebuilt). `str(error)` says what was expected, what came and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


class LonghaulError(Exception):
    """Base of every error raised on purpose. `kind` is the label under which it is counted; a class names its boundary
    where it is declared.
    """

    boundary = "longhaul"

    def __init_subclass__(cls, *, boundary: str | None = None) -> None:
        cls.boundary = boundary or cls.boundary

    def __init__(self, message: str, *, kind: str = "error") -> None:
        super().__init__(message)
        self.kind = kind

    @property
    def label(self) -> str:
        """`boundary.kind`, the name used in metrics and failure records."""
        return f"{self.boundary}.{self.kind}"


class ConfigError(LonghaulError, ValueError, boundary="config"):
    """The user's settings cannot work. Printed as one line, exit status 2, before anything starts."""


class WireError(LonghaulError, boundary="wire"):
    """A message was malformed, of another version, too large, or refused by the peer."""


class DeadlineError(LonghaulError, TimeoutError, boundary="deadline"):
    """A wait ended without its event. The message names what was waited for and how long."""


class SandboxError(LonghaulError, boundary="sandbox"):
    """The world failed, not the agent: a sandbox died, could not start, or ran out of a host resource."""


class TaskError(LonghaulError, boundary="task"):
    """A task record is unusable: a field is missing, wrong, or contradicts another."""


class AgentError(LonghaulError):
    """An agent from outside could not be run: nothing that the policy did."""

    boundary = "agent"


class GradingError(LonghaulError, boundary="grading"):
    """The judgement itself failed (not the tests): never a reward of 0."""


class GeneratorError(LonghaulError, boundary="generator"):
    """A generator refused or lost a request. `retry_after_s` is its hint when it is merely full."""

    def __init__(self, message: str, *, kind: str = "error", retry_after_s: float | None = None) -> None:
        super().__init__(message, kind=kind)
        self.retry_after_s = retry_after_s


class WeightsError(LonghaulError, boundary="weights"):
    """Weights could not be published, received or proved equal."""


class ReplayError(LonghaulError, boundary="replay"):
    """The replay buffer refused a message that breaks its rules."""


class JournalError(LonghaulError, boundary="journal"):
    """The journal is damaged, or its disk is."""


class LearnerError(LonghaulError, boundary="learner"):
    """The learner refused a batch, a model or a layout of ranks."""


class CheckpointError(LonghaulError, boundary="checkpoint"):
    """A checkpoint is incomplete, of another model, or cannot be written."""


@contextlib.contextmanager
def border(
    error: type[LonghaulError],
    expected: str,
    *,
    kind: str = "error",
    tell: Callable[[Exception], str] = lambda came: f"{type(came).__name__}: {came}",
) -> Iterator[None]:
    """Stands around calls of a foreign library: whatever that raises becomes `error`, with the original as its cause.

    What is ours already passes as it is, and so do cancellation, interrupts and exits: they are no failure of the
    library. A deadline goes outside (`async with asyncio.timeout(s): with border(...): await ...`), for inside it would
    be told as the library's.

    Args:
        expected: ends "expected ..." in the message: `vLLM to start with /models/x`.
        kind: of the error.
        tell: what came, from what was raised.
    """
    try:
        yield
    except LonghaulError:
        raise
    except Exception as came:
        raise error(f"expected {expected}, got {tell(came)}", kind=kind) from came
