"""The store in which ranks of several hosts meet does what torch's own does, for the run alone."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from learner.ranks.store import RunStore, StoreServer
from protocol.sockets import Keys
from tests.ports import free_port

KEYS = Keys.generate()
SOON, LATE = timedelta(seconds=0.3), timedelta(seconds=60)  # SOON only where nothing is to come


@pytest.fixture(params=["run", "torch"])
def store(request):
    """Ours, and the one that it stands for."""
    if request.param == "torch":
        yield dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=LATE)
        return
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    server = StoreServer(endpoint, KEYS)
    own = RunStore(endpoint, KEYS, LATE)
    yield own
    own.close()
    server.close()


def test_it_does_what_torchs_own_does(store):
    prefixed = dist.PrefixStore("group", store)
    prefixed.set("a", "x")
    assert prefixed.get("a") == b"x" and store.get("group/a") == b"x"
    assert prefixed.add("n", 3) == 3 and prefixed.add("n", -1) == 2
    assert prefixed.check(["a", "n"]) and not prefixed.check(["a", "b"])
    prefixed.wait(["a", "n"], LATE)
    assert prefixed.delete_key("a") and not prefixed.delete_key("a")
    with pytest.raises(dist.DistStoreError):
        prefixed.wait(["a"], SOON)


def test_keys_are_waited_for(store):
    """Also while another thread uses the same store, for which torch's own would need another connection."""
    if not isinstance(store, RunStore):
        store = store.clone()
    prefixed = dist.PrefixStore("group", store)
    writing = prefixed if isinstance(store, RunStore) else dist.PrefixStore("group", store.clone())
    later = threading.Timer(0.1, lambda: writing.set("late", "here"))
    later.start()
    assert prefixed.get("late") == b"here"
    later.join()
    store.set_timeout(SOON)
    with pytest.raises(dist.DistStoreError):
        store.get("never")


def test_values_are_exchanged_where_they_are_as_expected(store):
    if isinstance(store, RunStore):
        assert store.compare_set("k", b"", b"1") == b"1"
        assert store.compare_set("k", b"2", b"3") == b"1" and store.compare_set("k", b"1", b"3") == b"3"
        assert store.compare_set("none", b"x", b"y") == b"x"
    else:
        assert store.compare_set("k", "", "1") == b"1"
        assert store.compare_set("k", "2", "3") == b"1" and store.compare_set("k", "1", "3") == b"3"
        assert store.compare_set("none", "x", "y") == b"x"


def test_nobody_else_is_let_in_and_silence_is_told(monkeypatch):
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    server = StoreServer(endpoint, KEYS)
    stranger = RunStore(endpoint, Keys(public=KEYS.public, secret=Keys.generate().secret), SOON)
    monkeypatch.setattr("learner.ranks.store._ANSWER_S", 0.5)
    try:
        with pytest.raises(dist.DistNetworkError):
            stranger.add("n", 1)
    finally:
        stranger.close()
        server.close()
