"""The account of the infrastructure as a file and as a table, and what is said while things go wrong."""

import json
from types import SimpleNamespace

from cluster.reporting.all_sinks import AllSinks
from cluster.reporting.audit import rows, write_audit
from cluster.reporting.troubles import Troubles
from learner.replay.audit import Audit
from learner.replay.service.account import Account, News

ACCOUNT = Account(
    tasks=9,
    leased=20,
    accepted=12,
    trained=8,
    expired=1,
    set_aside={"t1": "sandbox.start x6: no daemon"},
    unscored={},
    not_trained={"never drawn": [f"t{i}" for i in range(2, 9)]},
    filtered={"no_signal": 4},
    audit=Audit(
        retries=3,
        zeros={"tests": 5, "": 1},
        failed_by_kind={"sandbox.start": 6},
        finished_by_length={64: 10, 128: 2},
        limited_by_length={128: 2},
        trained_by_length={64: 8},
    ),
)


def test_the_file_and_the_table_say_the_same(tmp_path):
    figures = write_audit(tmp_path, ACCOUNT, {"actors.second_opinions": 2.0})
    written = json.loads((tmp_path / "audit.json").read_text())
    assert written == figures
    assert written["fake_zeros"] == 1 and written["zeros_by_reason"] == {"tests": 5, "unexplained": 1}
    shown = dict(rows(figures))
    assert shown["rewards of 0 that nothing explains"] == "1"
    assert shown["tasks set aside"] == "1 of 9: t1"
    assert shown["tasks not trained: never drawn"] == "7 of 9: t2, t3, t4, t5, t6 and 2 more"
    assert shown["ended by a limit, up to 128 tokens"] == "2 of 2, 0 trained"


def test_an_outage_is_said_when_it_begins_and_when_it_ends():
    troubles = Troubles()
    broken = News(outage="nothing works: 9 failures", paused="", given_up="", set_aside={})
    fine = News(outage="", paused="", given_up="", set_aside={})
    assert troubles.lines(fine, 0.0) == []
    assert "nothing works: 9 failures" in troubles.lines(broken, 10.0)[0]
    assert troubles.lines(broken, 20.0) == []
    assert troubles.lines(fine, 70.0) == ["it works again, after 60 s"]


def test_a_full_disk_is_said_when_it_is_full_and_when_there_is_room_again():
    troubles = Troubles()
    full = News(outage="", paused="disk space for the journal: 3 MiB are left", given_up="", set_aside={})
    fine = News(outage="", paused="", given_up="", set_aside={})
    assert "disk space for the journal" in troubles.lines(full, 10.0)[0]
    assert troubles.lines(full, 20.0) == []
    assert troubles.lines(fine, 40.0) == ["episodes are leased again, after 30 s"]


def test_what_cannot_be_written_is_said_once_and_costs_nobody_else():
    said, written, is_full = [], [], [True]

    class Full:
        def write(self, kind, values, step):
            if is_full[0]:
                raise OSError(28, "No space left on device")

    sinks = AllSinks([Full(), SimpleNamespace(write=lambda *record: written.append(record))], said.append)
    for step in range(3):
        sinks.write("system", {}, step)
    is_full[0] = False
    sinks.write("system", {}, 3)
    assert len(written) == 4
    assert said == [
        "metrics are not written: No space left on device. The run goes on without them",
        "metrics are written again",
    ]


def test_tasks_that_are_set_aside_are_named_once_and_not_without_end():
    troubles = Troubles()
    said = troubles.lines(
        News(outage="", paused="", given_up="", set_aside={f"t{i}": "no image" for i in range(30)}), 0.0
    )
    assert said[0] == "task 't0' is set aside: no image" and len(said) == 11
    assert troubles.lines(News(outage="", paused="", given_up="", set_aside={"t3": "no image"}), 1.0) == [
        "it was not the tasks: 29 that were set aside are tried again"
    ]
    assert troubles.lines(News(outage="", paused="", given_up="", set_aside={"t3": "no image"}), 2.0) == []
    again = troubles.lines(News(outage="", paused="", given_up="", set_aside={"t3": "x", "t4": "x"}), 3.0)
    assert again == [], "names are few, over the whole run"
