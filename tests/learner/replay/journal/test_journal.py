"""The log on disk: what was committed is read back, what is torn is cut, what is damaged is named."""

import os
import random
import resource

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from learner.replay.journal.journal import Journal
from learner.replay.journal.reader import SNAPSHOT
from protocol.errors import JournalError


def written(directory, records, **options):
    journal = Journal(directory, **options)
    list(journal.recover())
    positions = [journal.append(frames) for frames in records]
    journal.commit()
    journal.close()
    return positions


def contents(directory, skip_corrupt=False):
    journal = Journal(directory)
    try:
        return [[bytes(frame) for frame in record.frames] for record in journal.recover(skip_corrupt)]
    finally:
        journal.close()


RECORDS = [[b"first"], [b"second", b"", b"x" * 100], [b"third", b"y" * 7]]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=4), max_size=20),
    segment_bytes=st.integers(64, 2000),
    commit_every=st.integers(1, 5),
)
def test_everything_committed_is_read_back_in_order(tmp_path_factory, records, segment_bytes, commit_every):
    directory = tmp_path_factory.mktemp("journal")
    journal = Journal(directory, segment_bytes=segment_bytes, fsync="never")
    positions = []
    for i, frames in enumerate(records):
        positions.append(journal.append(frames))
        if i % commit_every == 0:
            journal.commit()
    journal.commit()
    for position, frames in zip(positions, records, strict=True):
        assert [bytes(f) for f in journal.read(position)] == frames
    journal.close()
    assert contents(directory) == records


def test_a_tail_torn_at_any_byte_is_cut_and_writing_goes_on(tmp_path):
    positions = written(tmp_path / "whole", RECORDS)
    log = next((tmp_path / "whole").glob("*.log"))
    whole, salt = log.read_bytes(), (tmp_path / "whole" / "salt").read_bytes()
    for size in range(len(whole)):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / "salt").write_bytes(salt)
        (directory / log.name).write_bytes(whole[:size])
        kept = sum(end <= size for end in [*positions[1:], len(whole)])
        assert contents(directory) == RECORDS[:kept]
        written(directory, [[b"after"]], fsync="never")
        assert contents(directory) == [*RECORDS[:kept], [b"after"]]


def test_a_damaged_record_in_the_middle_is_named_and_skipped_only_by_choice(tmp_path):
    positions = written(tmp_path, RECORDS)
    log = next(tmp_path.glob("*.log"))
    whole = log.read_bytes()
    rng = random.Random(0)
    for _ in range(40):
        at = rng.randrange(positions[1], positions[2])
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        with pytest.raises(JournalError, match=f"offset {positions[1]} ") as error:
            contents(tmp_path)
        assert error.value.kind == "corrupt"
        assert contents(tmp_path, skip_corrupt=True) == [RECORDS[0], RECORDS[2]]


def test_a_record_forged_inside_a_frame_is_not_taken_for_one(tmp_path):
    """Tokens are written by whoever wrote a task: a torn record whose payload looks like a record is still torn."""
    written(tmp_path / "other", [[b"forged"]])
    forged = next((tmp_path / "other").glob("*.log")).read_bytes()
    written(tmp_path / "real", [[b"first"], [forged * 3]])
    log = next((tmp_path / "real").glob("*.log"))
    os.truncate(log, log.stat().st_size - 1)
    assert contents(tmp_path / "real") == [[b"first"]]


def test_recovery_begins_at_the_newest_snapshot_and_old_segments_go(tmp_path):
    journal = Journal(tmp_path, segment_bytes=100)
    first = journal.append([b"a" * 90])
    journal.append([b"b" * 90])
    kept = journal.append([b"c" * 90])
    snapshot = journal.append([b"state"], SNAPSHOT)
    journal.append([b"d"])
    journal.commit()
    assert journal.drop_before(snapshot, live=[kept]) == 2
    assert [bytes(f) for f in journal.read(kept)] == [b"c" * 90]
    with pytest.raises(JournalError):
        journal.read(first)
    journal.close()
    assert contents(tmp_path) == [[b"state"], [b"d"]]


def test_a_torn_snapshot_leaves_the_records_before_it(tmp_path):
    journal = Journal(tmp_path)
    journal.append([b"a"])
    snapshot = journal.append([b"state"], SNAPSHOT)
    journal.commit()
    journal.close()
    os.truncate(tmp_path / f"{snapshot:020d}.log", 20)
    assert contents(tmp_path) == [[b"a"]]


def test_only_one_process_may_have_it_open(tmp_path):
    reader, writer = os.pipe()
    journal = Journal(tmp_path)
    child = os.fork()
    if not child:
        try:
            Journal(tmp_path)
        except JournalError as error:
            os.write(writer, error.kind.encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"locked"
    journal.close()


def test_a_full_disk_keeps_the_queue_and_commits_when_there_is_room(tmp_path):
    """A file-size limit stands in for the disk: the kernel refuses the write in the same place."""
    journal = Journal(tmp_path)
    journal.append([b"small"])
    journal.commit()
    size = next(tmp_path.glob("*.log")).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, hard))
    try:
        journal.append([b"x" * 20_000])
        journal.append([b"last"])
        for _ in range(2):
            with pytest.raises(JournalError) as error:
                journal.commit()
            assert error.value.kind == "disk_full"
        assert next(tmp_path.glob("*.log")).stat().st_size == size
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    journal.commit()
    journal.close()
    assert contents(tmp_path) == [[b"small"], [b"x" * 20_000], [b"last"]]


@pytest.mark.parametrize(("fsync", "syncs"), [("always", 5), ("interval", 1), ("never", 0)])
def test_fsync_policy(tmp_path, fsync, syncs):
    journal = Journal(tmp_path, fsync=fsync)
    for _ in range(5):
        journal.append([b"x"])
        journal.commit()
    journal.sync()
    journal.sync()
    assert journal.num_syncs == syncs
    journal.close()
