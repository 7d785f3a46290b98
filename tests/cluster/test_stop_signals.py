"""The first signal asks, the second insists; the newest one decides the exit status."""

import asyncio
import os
import signal

from cluster.stop_signals import StopSignals


async def test_the_first_signal_asks_and_the_second_insists():
    stop = StopSignals()
    try:
        assert not stop.requested.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.requested.wait(), 60)
        assert stop.received is signal.SIGTERM
        assert not stop.insisted.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stop.insisted.wait(), 60)
        assert stop.received is signal.SIGINT
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)
