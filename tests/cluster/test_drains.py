"""The note that asks a run to leave a host."""

from cluster.hosts import drains

HOSTS = ["host0/aaaaaa", "host1/bbbbbb", "host10/cccccc"]


def test_a_run_reads_a_note_once_and_knows_its_host_by_either_name(tmp_path, capsys):
    (tmp_path / "settings.json").touch()
    assert drains.command(["host1", str(tmp_path)], "longhaul drain") == 0
    assert drains.command(["host10/cccccc", str(tmp_path)], "longhaul drain") == 0
    assert "host1 is drained" in capsys.readouterr().out
    assert drains.asked(tmp_path, HOSTS) == ["host1/bbbbbb", "host10/cccccc"]
    assert drains.asked(tmp_path, HOSTS) == []


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert drains.command(["host1", str(tmp_path)], "longhaul drain") == 2
    assert "is no run directory" in capsys.readouterr().err
