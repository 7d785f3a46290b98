"""A sandbox actor that comes back while its place does not work is waited for, as any outage is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import crew as crew_module
from cluster.crew import Crew
from cluster.supervision.part import Part, PartFailed
from protocol.config import Settings
from protocol.errors import ConfigError


class Place:
    """Where sandbox actors are started; the first starts fail."""

    def __init__(self, failing: int) -> None:
        self.failing, self.num_placed = failing, 0
        self.run = SimpleNamespace(remote=asyncio.Event().wait)

    def __call__(self, title: str) -> Place:
        self.num_placed += 1
        return self

    async def start(self, handle: Any) -> None:
        if self.num_placed <= self.failing:
            raise ConfigError("sandbox backend docker does not work here: no daemon answers")


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew_module, "_START_AGAIN_S", 0.0)

    async def end(crew: Crew, part: Part) -> None:
        """There is no process; it is asked for all the same."""
        await asyncio.sleep(0)

    monkeypatch.setattr(Crew, "_end", end)


def crew_of(tmp_path: Path, place: Place, names: list[str], give_up_s: float) -> tuple[Crew, list[str]]:
    notes: list[str] = []
    cluster: Any = SimpleNamespace(files=SimpleNamespace(logs=tmp_path), generations={})
    crew = Crew(Settings(replay={"give_up_s": give_up_s}), cluster, [], [], notes.append)
    crew.actors = [Part(name, "actors", place, place.start) for name in names]
    return crew, notes


async def test_it_is_tried_until_its_place_works(tmp_path: Path) -> None:
    place = Place(failing=4)
    crew, notes = crew_of(tmp_path, place, ["actor-0"], give_up_s=600)
    (part,) = crew.actors
    await crew.restart(part)
    assert crew.actors == [part] and place.num_placed == 5
    said, ready = notes
    assert "no daemon answers; it is started again every" in said and ready == "actor-0 is ready again"
    assert part.ending is not None
    part.ending.cancel()


async def test_a_run_with_others_goes_on_without_it_and_one_without_ends(tmp_path: Path) -> None:
    crew, notes = crew_of(tmp_path, Place(failing=99), ["actor-0", "actor-1"], give_up_s=1e-6)
    first, second = crew.actors
    await crew.restart(first)
    assert crew.actors == [second]
    assert "goes on without actor-0: actor-0 failed" in notes[-1] and "no daemon answers" in notes[-1]
    with pytest.raises(PartFailed, match="no daemon answers"):
        await crew.restart(second)


async def test_of_two_that_give_up_at_once_the_last_one_ends_the_run(tmp_path: Path) -> None:
    crew, _ = crew_of(tmp_path, Place(failing=99), ["actor-0", "actor-1"], give_up_s=1e-6)
    ended = await asyncio.gather(*(crew.restart(part) for part in list(crew.actors)), return_exceptions=True)
    assert [type(outcome) for outcome in ended] == [type(None), PartFailed]
    assert len(crew.actors) == 1, "a run without any would wait for ever"


async def test_one_whose_host_left_is_not_started_again(tmp_path: Path) -> None:
    place = Place(failing=99)
    crew, _ = crew_of(tmp_path, place, ["actor-0", "actor-1"], give_up_s=600)
    leaving = crew.actors.pop(0)
    await crew.restart(leaving)
    assert place.num_placed == 2, "each was placed once, when it was made"
