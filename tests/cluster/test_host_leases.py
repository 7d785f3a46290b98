"""No part lives twice, whatever the network does to the messages between a reaper and its launcher."""

from hypothesis import given
from hypothesis import strategies as st

from cluster.hosts.leases import KILLING_S, HostLeases, OwnLease

LEASE_S = 20.0
delays = st.none() | st.floats(0, 60)  # None: lost


@given(st.lists(st.tuples(st.floats(0, 30), delays, delays), max_size=40))
def test_a_host_has_ended_before_the_launcher_calls_it_gone(beats):
    """Every beat: after how long it is sent, how long it travels, and its answer."""
    launcher, host = HostLeases(LEASE_S), OwnLease(LEASE_S, now=0.0)
    launcher.begin("h", now=0.0)
    events, now = [], 0.0
    for pause, there, back in beats:
        now += pause
        if there is not None:
            events.append((now + there, "asked", now, back))
    ended = None
    while events:
        events.sort(key=lambda event: event[0])
        at, what, asked_at, back = events.pop(0)
        if ended is None and host.is_over(at):
            ended = at
        gone_before = "h" in launcher.surely_gone(at)
        if gone_before:
            assert host.is_over(at - KILLING_S)
        if what == "asked":
            if launcher.renew("h", at):
                assert not gone_before
                if back is not None:
                    events.append((at + back, "answered", asked_at, None))
        elif ended is None:
            host.renewed(asked_at)


def test_one_that_was_gone_stays_gone():
    leases = HostLeases(LEASE_S)
    leases.begin("h", 0.0)
    assert leases.renew("h", LEASE_S + KILLING_S - 1)
    assert leases.surely_gone(LEASE_S + KILLING_S + 1) == []
    assert leases.surely_gone(2 * (LEASE_S + KILLING_S)) == ["h"]
    assert not leases.renew("h", 2 * (LEASE_S + KILLING_S))
    assert leases.surely_gone(0.0) == ["h"]


def test_a_run_that_is_over_renews_nothing_and_waits_for_every_reaper():
    leases = HostLeases(LEASE_S)
    for host in ("a", "b"):
        leases.begin(host, 0.0)
    assert leases.renew("a", 1.0) and not leases.renew("stranger", 1.0)
    leases.is_over = True
    assert not leases.renew("a", 2.0)
    leases.done("a")
    assert leases.not_cleared() == ["b"]
    assert leases.surely_gone(3.0) == ["a"]
