"""What becomes of a backend's pods: one watch for all of them, however many wait for something."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from protocol.errors import SandboxError
from sandbox.kubernetes.cluster import Cluster, Json
from sandbox.kubernetes.state import State, gone, state_of, status_of_container
from sandbox.upkeep import Upkeep

log = logging.getLogger(__name__)

ASK_S = 10.0
"""Silence after which whoever waits for a pod asks for it itself: a watch can be half open."""
PAUSE_S = 1.0
_MOST_PAUSE_S = 30.0


class PodWatch(Upkeep):
    """The states of the pods with some labels.

    Args:
        ended: called with the name and state of a pod that has ended or is gone.
    """

    name = "pod-watch"

    def __init__(self, cluster: Cluster, selector: str, ended: Callable[[str, State], None]) -> None:
        super().__init__()
        self._cluster = cluster
        self._selector = selector
        self._ended = ended
        self._states: dict[str, State] = {}
        self._images: dict[str, str] = {}
        self._changed = asyncio.Condition()

    def expect(self, name: str) -> None:
        """A pod of that name is there from now on, until `forget`."""
        self._states[name] = State(problem="nothing was said of it yet", kind="start")
        self.start()

    def forget(self, name: str) -> None:
        """Nobody asks for it any more."""
        self._states.pop(name, None)
        self._images.pop(name, None)

    def image_of(self, name: str) -> str:
        """What its image is by content; empty where nothing has been said of it."""
        return self._images.get(name, "")

    async def until(self, name: str, done: Callable[[State], bool], deadline_s: float) -> State:
        """The state of a pod once it is one of those wanted, or the last one when the time is over.

        Raises `SandboxError` when nothing can be learnt of it.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + deadline_s
        while True:
            state = self._states.get(name) or gone()
            left = deadline - clock()
            if done(state) or left <= 0:
                return state
            async with self._changed:
                try:
                    async with asyncio.timeout(min(left, ASK_S)):
                        while self._states.get(name, gone()) == state:
                            await self._changed.wait()
                    continue
                except TimeoutError:
                    pass
            try:
                await self._learn(name, await self._cluster.pod(name))
            except SandboxError as error:
                if error.kind != "unavailable" or clock() >= deadline:
                    raise

    async def _run(self) -> None:
        """Waits for events of the API server; it ends each watch in minutes, and `stop` ends this."""
        pause = PAUSE_S
        while True:
            try:
                version, pods = await self._cluster.pods(self._selector)
                there = {pod["metadata"]["name"]: pod for pod in pods}
                for name in list(self._states):
                    # One that was expected a moment ago may be younger than the list.
                    if name in there or self._states[name].runs:
                        await self._learn(name, there.get(name))
                async for event, pod in self._cluster.watch_pods(self._selector, version):
                    name = pod.get("metadata", {}).get("name", "")
                    await self._learn(name, None if event == "DELETED" else pod)
                pause = PAUSE_S
                await asyncio.sleep(pause)
            except SandboxError as error:
                log.warning("pods are not watched for %g s: %s", pause, error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _MOST_PAUSE_S)

    async def _learn(self, name: str, pod: Json | None) -> None:
        if name not in self._states:
            return
        state = gone() if pod is None else state_of(pod)
        if image := status_of_container(pod or {}).get("imageID"):
            self._images[name] = image
        async with self._changed:
            self._states[name] = state
            self._changed.notify_all()
        if state.ended:
            self._ended(name, state)
