"""What a run on Kubernetes is refused for before anything starts."""

from __future__ import annotations

import pytest

from cluster.preflight import check_images
from protocol.config import Settings
from protocol.errors import ConfigError
from sandbox.datasets.of_run import tasks_of_run


def test_tasks_without_an_image_need_one() -> None:
    settings = Settings.model_validate({"sandbox": {"backend": "kubernetes"}, "tasks": {"count": 2}})
    tasks = tasks_of_run(settings)
    with pytest.raises(ConfigError, match=r"micro-train-d0-s0-0 names no image.*--sandbox\.kubernetes\.image"):
        check_images(settings, tasks)
    check_images(Settings.model_validate({"tasks": {"count": 2}}), tasks)
    with_one = {"backend": "kubernetes", "kubernetes": {"image": "an:image"}}
    check_images(Settings.model_validate({"sandbox": with_one, "tasks": {"count": 2}}), tasks)
