"""What neither encrypts nor asks who connects stays on its host, or on a network that is the run's alone."""

import pytest

from cluster.hosts.collectives import ON_LOOPBACK, check_collectives, stay_on_their_host
from cluster.hosts.plan import Placed, Plan, Size
from protocol.config import Settings
from protocol.errors import ConfigError


def planned(*parts, gpus=0):
    """Of pairs of a role and a host."""
    size = Size(1, gpus, 0.0)
    placed = [Placed(name=f"{role}-{i}", role=role, host=host, size=size) for i, (role, host) in enumerate(parts)]
    return Plan([], placed)


RANKS_APART = [("learner", "a"), ("learner", "b"), ("generator", "a")]
GENERATORS_APART = [("learner", "a"), ("learner", "a"), ("generator", "a"), ("generator", "b"), ("actors", "c")]


@pytest.mark.parametrize(("gpus", "how"), [(0, "gloo"), (1, "NCCL")])
def test_ranks_on_several_hosts_need_a_network_of_their_own(gpus, how):
    with pytest.raises(ConfigError, match=f"learner ranks go to a, b, and {how} between them") as caught:
        check_collectives(Settings(), planned(*RANKS_APART, gpus=gpus))
    assert len(str(caught.value).splitlines()) == 1 and "--network.trusted" in str(caught.value)
    check_collectives(Settings(network={"trusted": True}), planned(*RANKS_APART, gpus=gpus))


def test_a_broadcast_of_weights_to_other_hosts_does_too():
    broadcast = {"weights": {"channel": "nccl"}}
    with pytest.raises(ConfigError, match="from a to b by gloo"):
        check_collectives(Settings(**broadcast), planned(*GENERATORS_APART))
    check_collectives(Settings(**broadcast, network={"trusted": True}), planned(*GENERATORS_APART))
    check_collectives(Settings(**broadcast), planned(("learner", "a"), ("generator", "a"), ("actors", "b")))


def test_what_is_encrypted_between_hosts_is_taken():
    check_collectives(Settings(), planned(*GENERATORS_APART))
    check_collectives(Settings(phase="eval"), planned(("generator", "a"), ("generator", "b")))


@pytest.mark.parametrize(
    ("channel", "trusted", "learner", "generator"),
    [("auto", 0, True, True), ("nccl", 0, True, True), ("auto", 1, False, True), ("nccl", 1, False, False)],
)
def test_they_stay_on_loopback_unless_another_host_may_have_to_reach_them(channel, trusted, learner, generator):
    settings = Settings(weights={"channel": channel}, network={"trusted": trusted})
    assert stay_on_their_host(settings, "learner") is learner
    assert stay_on_their_host(settings, "generator") is generator
    assert set(ON_LOOPBACK.values()) == {"lo"}
