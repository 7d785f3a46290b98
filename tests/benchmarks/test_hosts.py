"""Figures of a run over hosts are what was measured, or null with the reason."""

import json
import sys

import pytest

from benchmarks.hosts import __main__ as program
from benchmarks.hosts.network import CannotMakeHosts
from benchmarks.hosts.trials import trained_per_min


class Recorded:
    """A run whose steps are known before."""

    def __init__(self, steps):
        self._steps, self._taken = steps, 1

    def take_steps(self, count, timeout_s):
        self._taken += count

    def records(self, kind):
        assert kind == "step"
        return self._steps[: self._taken]


def test_a_rate_is_of_the_steps_behind_those_that_warm_up():
    times = [0, 100, 200, 206, 212, 230]
    steps = [{"time": time, "num_trajectories": 8.0 if time < 230 else 4.0} for time in times]
    assert trained_per_min(Recorded(steps), 3) == pytest.approx(60 * (8 + 8 + 4) / 30)


def reported(monkeypatch, capsys, error):
    class Network:
        def __init__(self, num_hosts):
            self.hosts = []

        def __enter__(self):
            if isinstance(error, CannotMakeHosts):
                raise error
            return self

        def __exit__(self, *_):
            pass

    def fail(*_):
        raise error

    monkeypatch.setattr(program, "Network", Network)
    monkeypatch.setattr(program, "weights_gb_s", fail)
    monkeypatch.setattr(sys, "argv", ["hosts", "--quick"])
    program.main()
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CannotMakeHosts("no unshare"), "no hosts can be made here: no unshare"),
        (RuntimeError("the run ended\nwith words"), "not measured: the run ended"),
    ],
)
def test_what_was_not_measured_says_why(monkeypatch, capsys, error, reason):
    said = reported(monkeypatch, capsys, error)
    unknown = {name for name, value in said["figures"].items() if value is None}
    assert set(said["figures"]) == set(program.FIGURES)
    assert "partition_lost" in unknown and "trained_per_min_1" in unknown
    assert said["missing"] == dict.fromkeys(unknown, reason)
