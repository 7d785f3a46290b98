import os
import threading

from protocol.threads import give_way


def test_only_the_thread_that_asks_gives_way():
    before, found = os.getpriority(os.PRIO_PROCESS, 0), []

    def work():
        for _ in range(3):
            give_way()
            found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [min(before + 10, 19), min(before + 20, 19), min(before + 30, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
