"""How full a host is, by what is used and by what waits."""

import pytest

from actors.episodes.host_load import host_load, memory_pressure

SAID = "some avg10=41.20 avg60=0.29 avg300=0.27 total=1656145\nfull avg10={} avg60=0.02 avg300=0.01 total=254196\n"


@pytest.mark.parametrize(("said", "share"), [("0.00", 0.0), ("5.00", 0.5), ("35.10", 3.51)])
def test_programs_that_wait_for_memory_make_a_host_full(tmp_path, said, share):
    (tmp_path / "memory").write_text(SAID.format(said))
    files = [tmp_path / "missing", tmp_path / "memory"]
    assert memory_pressure(files) == pytest.approx(share)
    assert host_load(files)["host_memory_share"] >= share
    assert host_load(files)["host_memory_share"] > 0


def test_a_container_of_its_own_counts_before_the_host(tmp_path):
    for name, said in (("own", "2.00"), ("host", "90.00")):
        (tmp_path / name).write_text(SAID.format(said))
    assert memory_pressure([tmp_path / "own", tmp_path / "host"]) == pytest.approx(0.2)


@pytest.mark.parametrize("said", ["", "full", "full avg10=", "full avg10=x avg60=1", "some avg10=90.00 avg60=1"])
def test_a_kernel_that_does_not_tell_is_not_believed_to_be_full(tmp_path, said):
    (tmp_path / "memory").write_text(said)
    assert memory_pressure([tmp_path / "memory"]) == 0.0
