"""Shared by all tests: the order (fast first), and one vLLM engine for the whole session (a start takes seconds)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from protocol.config import GeneratorSettings, ModelSettings, Settings

too_slow = [hypothesis.HealthCheck.too_slow]
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=too_slow)  # timings decide no test
hypothesis.settings.load_profile("suite")

SLOWEST_LAST = ("slow", "docker", "deepspeed", "vllm", "e2e")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: a mistake shows within seconds, and the engine starts only for those who need it."""

    def cost(item: pytest.Item) -> int:
        return max((i + 1 for i, name in enumerate(SLOWEST_LAST) if item.get_closest_marker(name)), default=0)

    items.sort(key=cost)


class ServedModel:
    """A tiny tied float32 model behind a generator, and the publisher that its weights come from."""

    def __init__(self, directory: Path) -> None:
        from actors.generator.own_process import GeneratorProcess
        from learner.publishing.publisher import WeightPublisher
        from tiny.model import build_model, save_random_model

        self.model_dir = save_random_model(directory / "model")
        self.settings = Settings(
            model=ModelSettings(path=str(self.model_dir), max_context=1024),
            generator=GeneratorSettings(max_running=64, max_waiting=64, kv_cache_mib=96),
        )
        self.run = f"test-{directory.name}"
        self.publisher = WeightPublisher(self.settings.weights, f"ipc://{directory}/weights", self.run)
        self.version = 0
        self.publisher.publish(0, build_model().named_parameters())
        self.process = GeneratorProcess(self.settings, "g0", f"ipc://{directory}/g0", self.publisher.endpoint)
        self.endpoint = self.process.endpoint
        self.publisher.wait_adopted(0, 60)

    def publish_random(self, seed: int) -> int:
        """Publish the weights of `build_model(seed=seed)` and wait until the engine serves them. Their version."""
        from tiny.model import build_model

        self.version += 1
        self.publisher.publish(self.version, build_model(seed=seed).named_parameters())
        self.publisher.wait_adopted(self.version, 60)
        return self.version

    def close(self) -> None:
        self.process.close()
        self.publisher.close()


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModel]:
    """A running generator with a live weight publisher; tests that use it are marked `vllm`."""
    served = ServedModel(tmp_path_factory.mktemp("served"))
    yield served
    served.close()
