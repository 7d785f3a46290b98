from learner.publishing.roster import SILENT_AFTER_S, Roster
from protocol.messages import WeightsPoll


def poll(name: str, version: int, checksum: str = "", **fields: object) -> WeightsPoll:
    return WeightsPoll(generator=name, version=version, checksum=checksum or f"sum{version}", **fields)


def roster(expected: int = 1) -> Roster:
    made = Roster(expected)
    for version in range(4):
        made.published(version, f"sum{version}")
    return made


def test_nothing_is_adopted_before_everybody_has_joined():
    r = roster(2)
    assert r.missing(0) == "0 of 2 generators have joined"
    r.heard(poll("a", 0), 0)
    assert not r.adopted(0)
    assert r.newly_adopted() is None
    r.heard(poll("b", 0), 0)
    assert r.adopted(0)
    assert r.newly_adopted() == 0
    assert r.newly_adopted() is None


def test_a_newer_version_counts_for_an_older_one_and_the_slowest_decides():
    r = roster(2)
    r.heard(poll("a", 3), 0)
    r.heard(poll("b", 1), 0)
    assert r.newly_adopted() == 1
    assert r.adopted(1)
    assert r.missing(2) == "b serves 1"
    assert not r.adopted(7), "it was never published"


def test_the_silent_are_forgotten_and_no_longer_waited_for():
    r = roster(2)
    r.heard(poll("a", 1), 0)
    r.heard(poll("b", 0), 0)
    r.heard(poll("a", 1), SILENT_AFTER_S)
    r.drop_silent(SILENT_AFTER_S + 0.1)
    assert r.adopted(1)
    assert r.num_lost == 1
    r.drop_silent(10 * SILENT_AFTER_S)
    assert r.missing(1) == "no generator is alive"
    r.heard(poll("b", -1, checksum="x"), 0)
    assert r.missing(1) == "b serves -1"


def test_who_takes_a_version_reads_its_bytes_until_its_next_poll():
    r = roster()
    assert r.readers_of(None) == []
    r.heard(poll("a", 0), 0)
    r.offered("a", 1)
    assert r.readers_of(1) == ["a"]
    r.heard(poll("a", 0, taking=1), 5)
    assert r.readers_of(1) == ["a"]
    r.drop_silent(5 + SILENT_AFTER_S - 1)
    assert r.readers_of(1) == ["a"]
    r.heard(poll("a", 1), 6)
    assert r.readers_of(1) == []
    r.offered("nobody", 2)
    assert r.readers_of(2) == []


def test_another_checksum_is_a_failure_until_the_generator_starts_anew():
    r = roster()
    r.heard(poll("a", 1, checksum="wrong"), 0)
    assert r.failure() == "a: serves version 1 with checksum wrong, the learner has sum1"
    assert r.newly_adopted() is None
    r.heard(poll("a", -1, checksum=""), 1)
    assert not r.failure()
    r.heard(poll("a", 0, failure="the disk is full"), 2)
    assert r.failure() == "a: the disk is full"
