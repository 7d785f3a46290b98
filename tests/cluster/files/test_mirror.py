"""Checkpoints at a URL: an object store's own API, answered by a local server."""

import json
from pathlib import Path

import pytest

from cluster.files import mirror
from cluster.files.mirror import Mirror, check_url, fetch_newest, mirrored, with_fetched_checkpoint
from cluster.files.urls import open_url
from protocol.config import CheckpointSettings, Settings, TaskSettings
from protocol.errors import ConfigError


def checkpoint(directory, step, *, is_complete=True):
    made = directory / f"step-{step}"
    (made / "hf").mkdir(parents=True)
    (made / "state-00000.safetensors").write_bytes(bytes([step]) * 5000)
    (made / "hf" / "model.safetensors").write_bytes(bytes([step]) * 700)
    if is_complete:
        (made / "checkpoint.json").write_text(json.dumps({"version": step}))
    return made


def content(directory):
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def test_checkpoints_are_copied_kept_and_fetched(url, tmp_path):
    here, said = tmp_path / "checkpoints", []
    copying = Mirror(url, here, 2, said.append)
    files, root = open_url(url, "")
    with pytest.raises(ConfigError, match="no complete checkpoint is there"):
        fetch_newest(url, tmp_path / "cache", 60, print)
    for step in (2, 9, 10):
        checkpoint(here, step)
        copying.sync()
    checkpoint(here, 11, is_complete=False)
    copying.sync()
    assert mirror.complete_steps(files, root) == [9, 10]
    found = fetch_newest(url, tmp_path / "cache", 60, print)
    assert found.name == "step-10" and content(found) == content(here / "step-10")
    assert fetch_newest(url, tmp_path / "cache", 60, print) == found


def test_a_copy_that_stopped_is_no_checkpoint_and_is_done_again(url, tmp_path):
    here = tmp_path / "checkpoints"
    made = checkpoint(here, 3)
    files, root = open_url(url, "")
    files.makedirs(f"{root}/step-3", exist_ok=True)
    files.pipe_file(f"{root}/step-3/state-00000.safetensors", b"half")
    assert mirror.complete_steps(files, root) == []
    Mirror(url, here, 2, print).sync()
    assert content(fetch_newest(url, tmp_path / "cache", 60, print)) == content(made)


def test_a_run_copies_what_it_writes_last_and_another_begins_there(url, tmp_path):
    settings = Settings(checkpoint=CheckpointSettings(url=url), tasks=TaskSettings(cache_dir=tmp_path / "cache"))
    check_url(settings)
    with mirrored(settings, tmp_path, print):
        made = checkpoint(tmp_path / "checkpoints", 7)
    resumed = with_fetched_checkpoint(settings.model_copy(update={"resume": url}))
    assert content(Path(resumed.resume)) == content(made)
    for resume in (None, "auto", "/a/path"):
        same = settings.model_copy(update={"resume": resume})
        assert with_fetched_checkpoint(same) == same


def test_what_takes_nothing_is_refused_before_the_run_and_costs_none_in_it(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    broken = f"file://{tmp_path}/file/below"
    with pytest.raises(ConfigError, match="cannot be written"):
        check_url(Settings(checkpoint=CheckpointSettings(url=broken)))
    with pytest.raises(ConfigError, match=r"--checkpoint\.url nothing://x"):
        check_url(Settings(checkpoint=CheckpointSettings(url="nothing://x")))
    monkeypatch.setattr(mirror, "_EVERY_S", 0.01)
    said = []
    copying = Mirror(broken, tmp_path / "checkpoints", 2, said.append)
    checkpoint(tmp_path / "checkpoints", 1)
    copying.start()
    copying.close()
    assert len(said) == 1 and "checkpoints cannot be copied" in said[0]
