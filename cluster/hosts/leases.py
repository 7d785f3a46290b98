"""Until when a host may work for a run: a lease that the host's reaper renews with the launcher. Pure.

    reaper     asks every second; counts `lease_s` from when it asked; past it, ends all of the run on its host
    launcher   answers; counts `lease_s` from when it answered, and a margin for the killing

The host's count begins before the launcher's, whatever the network does between them. So a host that is silent is left
alone until its lease is over, and then nothing of the run lives there: a part of it may be started elsewhere and is
nowhere twice.
"""

from __future__ import annotations

KILLING_S = 10.0
"""Longest time from the end of a lease until its host's reaper has killed everything."""


class HostLeases:
    """The launcher's side. Times are `time.monotonic` seconds.

    Args:
        lease_s: of every host.
    """

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self._answered_at: dict[str, float] = {}
        self._gone: set[str] = set()
        self._done: set[str] = set()
        self._expelled: set[str] = set()
        self.is_over = False  # the run has ended: whoever asks is told to clear its host

    def begin(self, host: str, now: float) -> None:
        """A reaper is being started there."""
        assert host not in self._gone, "a host that is gone comes back under another name"
        self._answered_at[host] = now

    def renew(self, host: str, now: float) -> bool:
        """Whether the host may go on. One that was gone may not: its parts may live elsewhere by now."""
        if self.is_over or host in self._gone | self._expelled or host not in self._answered_at:
            return False
        self._answered_at[host] = now
        return True

    def expel(self, host: str) -> None:
        """The run goes on without it: it hears so when it asks next, and is gone once clear, or its lease over."""
        self._expelled.add(host)

    def done(self, host: str) -> None:
        """Its reaper has cleared it."""
        self._done.add(host)
        self._gone.add(host)

    def silent_s(self, host: str, now: float) -> float:
        """How long nothing was heard of a host."""
        return now - self._answered_at[host]

    def surely_gone(self, now: float) -> list[str]:
        """Hosts on which nothing of the run can live any more, from now on for ever."""
        for host, answered in self._answered_at.items():
            if now > answered + self.lease_s + KILLING_S:
                self._gone.add(host)
        return sorted(self._gone)

    def not_cleared(self) -> list[str]:
        """Hosts whose reapers have not said that they are done."""
        return sorted(set(self._answered_at) - self._done)


class OwnLease:
    """The reaper's side."""

    def __init__(self, lease_s: float, now: float) -> None:
        self._lease_s = lease_s
        self._until = now + lease_s

    def renewed(self, asked_at: float) -> None:
        """The launcher answered what was asked then."""
        self._until = max(self._until, asked_at + self._lease_s)

    def is_over(self, now: float) -> bool:
        """Whether all of the run on this host must end."""
        return now > self._until
