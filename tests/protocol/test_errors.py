"""The border: what a foreign library raises becomes that border's error; what is ours, or no failure, passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from protocol.errors import ConfigError, DeadlineError, GeneratorError, LonghaulError, WireError, border


class _Refusal(Exception):
    """Some library's own."""


FOREIGN = [
    _Refusal("no"),
    OSError(2, "gone"),
    KeyError("x"),
    RecursionError("deep"),
    StopIteration(1),
    AssertionError(),
]


@pytest.mark.parametrize("came", FOREIGN, ids=lambda came: type(came).__name__)
def test_whatever_a_library_raises_becomes_the_borders_error_with_its_cause(came: Exception) -> None:
    with pytest.raises(GeneratorError) as caught, border(GeneratorError, "vLLM to start", kind="start"):
        raise came
    assert caught.value.__cause__ is came
    assert caught.value.label == "generator.start"
    assert str(caught.value) == f"expected vLLM to start, got {type(came).__name__}: {came}"


PASSING = [
    DeadlineError("waited 1 s", kind="generate"),
    WireError("malformed"),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(2),
    GeneratorExit(),
]


@pytest.mark.parametrize("ours", PASSING, ids=lambda ours: type(ours).__name__)
def test_ours_and_what_is_no_failure_pass_as_they_are(ours: BaseException) -> None:
    with pytest.raises(type(ours)) as caught, border(GeneratorError, "vLLM to start", kind="start"):
        raise ours
    assert caught.value is ours
    assert caught.value.__cause__ is None


def test_what_came_can_be_told_in_other_words() -> None:
    with (
        pytest.raises(ConfigError, match=r"^expected a number, got 'one'$"),
        border(ConfigError, "a number", tell=lambda came: str(came).rpartition(" ")[2]),
    ):
        int("one")


def test_nothing_happens_where_nothing_is_raised() -> None:
    with border(ConfigError, "a number"):
        assert int("1") == 1


async def test_it_stands_around_awaits_and_a_deadline_outside_of_it_stays_one() -> None:
    async def fails() -> None:
        await asyncio.sleep(0)
        raise _Refusal("no")

    with pytest.raises(WireError, match="got _Refusal: no"), border(WireError, "an answer"):
        await fails()
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(0.01):
            with border(WireError, "an answer"):
                await asyncio.Event().wait()
    assert not isinstance(caught.value, LonghaulError)


async def test_cancelling_a_task_inside_a_border_cancels_it() -> None:
    async def waits() -> None:
        with border(WireError, "an answer"):
            await asyncio.Event().wait()

    task = asyncio.create_task(waits())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_generators_that_are_given_up_inside_a_border_close_quietly() -> None:
    def numbers() -> Iterator[int]:
        with border(WireError, "numbers"):
            yield from (1, 2)

    async def later() -> AsyncIterator[int]:
        with border(WireError, "numbers"):
            for number in (1, 2):
                yield number

    plain, slow = numbers(), later()
    assert (next(plain), await anext(slow)) == (1, 1)
    plain.close()
    await slow.aclose()  # type: ignore[attr-defined]


def test_every_error_names_its_boundary_once() -> None:
    boundaries = [kind.boundary for kind in LonghaulError.__subclasses__() if kind.__module__ == "protocol.errors"]
    assert len(boundaries) == len(set(boundaries)) > 10
    assert "longhaul" not in boundaries
