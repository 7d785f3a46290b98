"""Episodes to come: their images are named to whoever makes sandboxes."""

from __future__ import annotations

from actors.episodes.episode_runner import EpisodeRunner


def test_an_actor_names_the_images_to_its_backend_once() -> None:
    asked: list[list[str]] = []

    class Backend:
        def expect(self, images: list[str]) -> None:
            asked.append(images)

    class Imaged:
        def __init__(self, image: str | None) -> None:
            self.image = image

    runner = EpisodeRunner.__new__(EpisodeRunner)
    runner._tasks = {"a": Imaged("x:1"), "b": Imaged(None), "c": Imaged("y:1")}  # type: ignore[dict-item]
    runner._backend, runner._expected = Backend(), []  # type: ignore[assignment]
    for tasks in ((), ("a", "b", "unknown", "c"), ("a", "c"), ("c",)):
        runner.expect(tasks)
    assert asked == [["x:1", "y:1"], ["y:1"]]
