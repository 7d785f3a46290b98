"""Where ranks on several hosts meet: torch's key-value store over the run's own encrypted, authenticated sockets.

torch's `TCPStore` listens to anybody who reaches it. Ranks of one host meet there all the same, on loopback.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

from protocol.errors import LearnerError, LonghaulError
from protocol.messages import Message, StoreAnswer, StoreAsk
from protocol.server_thread import ServerThread
from protocol.sockets import BlockingClient, Keys

_ANSWER_S = 5.0
_LOOK_S = 0.02


class StoreServer:
    """Rank 0's side; listens from its construction on, until `close`."""

    def __init__(self, endpoint: str, keys: Keys) -> None:
        self._values: dict[str, bytes] = {}
        self._server = ServerThread(
            endpoint,
            keys,
            name="store of the ranks",
            answer=self._answer,
            look_around=lambda: None,
            look_every_s=60.0,
            on_failure=lambda: None,
        )

    def close(self) -> None:
        """Stop listening."""
        self._server.close()

    async def _answer(self, message: Message) -> Message:
        if not isinstance(message, StoreAsk):
            raise LearnerError(f"a store does not take {type(message).__name__}", kind="unexpected")
        before = self._values.get(message.key)
        match message.action:
            case "set":
                self._values[message.key] = message.value
            case "add":
                self._values[message.key] = str(int(before or 0) + message.amount).encode()
            case "exchange" if before == message.expected or (before is None and not message.expected):
                self._values[message.key] = message.value
            case "delete":
                self._values.pop(message.key, None)
        now = self._values.get(message.key)
        return StoreAnswer(
            is_there=now is not None, was_there=before is not None, value=now or b"", keys=len(self._values)
        )


class RunStore(dist.Store):
    """Every rank's side; calls come from torch, from any thread. Whoever hands it to torch must keep it alive.

    Raises `dist.DistNetworkError` where rank 0 does not answer, and `dist.DistStoreError` for keys that do not come.
    """

    def __init__(self, endpoint: str, keys: Keys, timeout: timedelta) -> None:
        super().__init__()
        self._endpoint, self._keys = endpoint, keys
        self._client = BlockingClient(endpoint, keys)
        self._wait_s = timeout.total_seconds()
        self._clones: list[RunStore] = []

    def set(self, key: str, value: bytes) -> None:  # type: ignore[override]
        """Put a value."""
        self._ask(StoreAsk(action="set", key=key, value=bytes(value)))

    def get(self, key: str) -> bytes:
        """The value of a key; waits until it is there."""
        return self._wait_for(key, self._wait_s).value

    def add(self, key: str, amount: int) -> int:
        """Count; the sum."""
        return int(self._ask(StoreAsk(action="add", key=key, amount=amount)).value)

    def check(self, keys: Sequence[str]) -> bool:
        """Whether all are there."""
        return all(self._ask(StoreAsk(action="look", key=key)).is_there for key in keys)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Until all are there."""
        for key in keys:
            self._wait_for(key, self._wait_s if timeout is None else timeout.total_seconds())

    def compare_set(self, key: str, expected: bytes, desired: bytes) -> bytes:  # type: ignore[override]
        """Put `desired` where `expected` stands, or nothing and nothing was expected; what stands there now."""
        asked = StoreAsk(action="exchange", key=key, value=bytes(desired), expected=bytes(expected))
        answer = self._ask(asked)
        return answer.value if answer.is_there else bytes(expected)

    def getNumKeys(self) -> int:
        """How many there are."""
        return self._ask(StoreAsk(action="look", key="")).keys

    def deleteKey(self, key: str) -> bool:
        """Whether it was there."""
        return self._ask(StoreAsk(action="delete", key=key)).was_there

    def set_timeout(self, timeout: timedelta) -> None:
        """Of `get` and `wait`."""
        self._wait_s = timeout.total_seconds()

    def clone(self) -> RunStore:
        """Another connection, for another thread."""
        self._clones.append(RunStore(self._endpoint, self._keys, timedelta(seconds=self._wait_s)))
        return self._clones[-1]

    def close(self) -> None:
        """Drop the connections."""
        for clone in self._clones:
            clone.close()
        self._client.close()

    def _wait_for(self, key: str, wait_s: float) -> StoreAnswer:
        deadline = time.monotonic() + wait_s
        while not (answer := self._ask(StoreAsk(action="look", key=key))).is_there:
            if time.monotonic() > deadline:
                raise dist.DistStoreError(f"wait timeout after {wait_s:g} s for {key}")
            time.sleep(_LOOK_S)
        return answer

    def _ask(self, message: StoreAsk) -> StoreAnswer:
        try:
            answer = self._client.request(message, _ANSWER_S)
        except LonghaulError as error:
            raise dist.DistNetworkError(str(error)) from error
        assert isinstance(answer, StoreAnswer)
        return answer
