"""What is said when a Ray cluster cannot be joined."""

import pytest
import ray
from ray.exceptions import AuthenticationError

from cluster.placement import join
from protocol.errors import ConfigError


@pytest.fixture
def refusing(monkeypatch, tmp_path):
    """A cluster that answers with an error, and where this user's token would lie."""
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # so that what `join` sets is taken back, too
    monkeypatch.delenv("RAY_AUTH_MODE")

    def refuse(error):
        def init(**_):
            raise error

        monkeypatch.setattr(ray, "init", init)
        return token

    return refuse


WRAPPED = "Failed to connect to GCS. Last connection error: Traceback\n  ...\nRPC error: InvalidAuthToken: missing"


@pytest.mark.parametrize("error", [AuthenticationError("InvalidAuthToken"), RuntimeError(WRAPPED)])
@pytest.mark.parametrize(("mine", "words"), [(None, "there is none at {}"), ("abc", "that of {} is not its own")])
def test_a_token_that_is_missing_or_wrong_is_named(refusing, error, mine, words):
    token = refusing(error)
    if mine:
        token.write_text(mine)
    with pytest.raises(ConfigError) as caught:
        join("10.0.0.1:6379", {})
    assert words.format(token) in str(caught.value)
    assert "wants Ray's token" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_silence_is_told_as_what_it_is(refusing):
    refusing(ConnectionError("Could not find any running Ray instance\nand more"))
    with pytest.raises(
        ConfigError,
        match=r"answers there \(Could not find any running Ray instance\); or it wants TLS, which is off here$",
    ):
        join("10.0.0.1:6379", {})


def test_a_token_that_is_there_is_used(refusing, monkeypatch):
    import os

    token = refusing(ConnectionError("nobody"))
    token.write_text("abc")
    with pytest.raises(ConfigError):
        join("10.0.0.1:6379", {})
    assert os.environ["RAY_AUTH_MODE"] == "token"
