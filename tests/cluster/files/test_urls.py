"""What is at a URL comes here once for each content, whole or not at all."""

import shutil
import threading
import uuid
from pathlib import Path

import pytest

from cluster.command_line.cli import parse
from cluster.files import urls
from cluster.files.relocation import describes
from cluster.files.sources import description, with_fetched_sources
from cluster.files.urls import Source, fetch, is_url, open_url
from protocol.config import Settings
from protocol.errors import ConfigError
from protocol.model_family import ModelFamily

TINY = Path(__file__).parents[3] / "assets" / "tiny"
WEIGHTS = bytes(range(256)) * 4000


@pytest.fixture(params=["memory", "s3"])
def url(request, tmp_path):
    """A place of its own in a store."""
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    return f"memory://{uuid.uuid4().hex}"


def put(url, below, data):
    files, root = open_url(url, "")
    name = f"{root}/{below}"
    files.makedirs(name.rpartition("/")[0], exist_ok=True)
    files.pipe_file(name, data)


@pytest.fixture
def model(url):
    place = f"{url}/my-model"
    put(place, "config.json", b"{}")
    put(place, "deeper/.hidden", b"1")
    put(place, "model.safetensors", WEIGHTS)
    return place


def content(place):
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


class Counted:
    """Counts the files that a transfer reads."""

    def __init__(self, monkeypatch):
        self.fetched, real = [], urls._Transfer._fetch

        def fetch(transfer, file):
            self.fetched.append(file.below)
            real(transfer, file)

        monkeypatch.setattr(urls._Transfer, "_fetch", fetch)


def test_a_directory_comes_once_for_each_content(model, tmp_path, monkeypatch):
    counted, source = Counted(monkeypatch), Source(model, "--model.path")
    first = fetch(source, tmp_path, 60, print)
    assert first.name == "my-model"
    assert content(first) == {"config.json": b"{}", "deeper/.hidden": b"1", "model.safetensors": WEIGHTS}
    assert fetch(source, tmp_path, 60, print) == first and len(counted.fetched) == 3
    put(model, "config.json", b"[]")  # as long, and another
    second = fetch(source, tmp_path, 60, print)
    assert content(second)["config.json"] == b"[]" and content(first)["config.json"] == b"{}"
    assert not list((tmp_path / "urls").glob("*.part"))


def test_a_single_file_keeps_its_name_and_a_part_is_another_tree(model, tmp_path):
    put(model, "tasks.jsonl", b"{}\n")
    one = fetch(Source(f"{model}/tasks.jsonl", "--tasks.source"), tmp_path, 60, print)
    assert one.name == "tasks.jsonl" and one.read_bytes() == b"{}\n"
    part = fetch(Source(model, "--model.path", wanted=describes), tmp_path, 60, print)
    assert set(content(part)) == {"config.json", "deeper/.hidden", "tasks.jsonl"}
    assert "model.safetensors" in content(fetch(Source(model, "--model.path"), tmp_path, 60, print))


def test_a_transfer_that_broke_leaves_nothing_that_counts_and_the_next_goes_on(model, tmp_path, monkeypatch):
    source = Source(model, "--model.path")
    with monkeypatch.context() as broken:
        real = urls._Transfer._fetch

        def fail(transfer, file):
            if file.below == "model.safetensors":
                raise TimeoutError("the store\nis away")
            real(transfer, file)

        broken.setattr(urls._Transfer, "_fetch", fail)
        broken.setattr(urls, "_AT_ONCE", 1)
        with pytest.raises(ConfigError, match=r"--model\.path .*: it cannot be read: TimeoutError: the store is away"):
            fetch(source, tmp_path, 60, print)
    assert [path.suffix for path in (tmp_path / "urls").iterdir() if path.is_dir()] == [".part"]
    counted = Counted(monkeypatch)
    assert content(fetch(source, tmp_path, 60, print))["model.safetensors"] == WEIGHTS
    assert counted.fetched == ["model.safetensors"]


def test_what_changes_meanwhile_is_no_tree(model, tmp_path, monkeypatch):
    real = urls._Transfer.bring

    def bring(transfer, listed, timeout_s):
        real(transfer, listed, timeout_s)
        put(model, "config.json", b"[1]")

    monkeypatch.setattr(urls._Transfer, "bring", bring)
    with pytest.raises(ConfigError, match="it was changed while it was being fetched"):
        fetch(Source(model, "--model.path"), tmp_path, 60, print)


def test_many_wait_for_one(model, tmp_path, monkeypatch):
    counted, places = Counted(monkeypatch), []
    threads = [
        threading.Thread(target=lambda: places.append(fetch(Source(model, "--model.path"), tmp_path, 60, print)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(places) == 4 and len(set(places)) == 1 and len(counted.fetched) == 3


def test_what_stands_still_is_given_up_and_what_comes_is_told(model, tmp_path, monkeypatch):
    go_on, said = threading.Event(), []

    def fetch_slowly(transfer, file):
        go_on.wait(60)

    monkeypatch.setattr(urls._Transfer, "_fetch", fetch_slowly)
    monkeypatch.setattr(urls, "_SAY_EVERY_S", 0.0)
    with monkeypatch.context() as impatient:
        impatient.setattr(urls, "_STALLED_S", 0.5)
        with pytest.raises(ConfigError, match=r"no byte came for"):
            fetch(Source(model, "--model.path"), tmp_path, 60, said.append)
    assert said and f"--model.path {model}: 0.00 of 0.00 GiB" in said
    with pytest.raises(ConfigError, match=r"only .* came within --hosts\.fetch-s 0\.5"):
        fetch(Source(model, "--model.path"), tmp_path, 0.5, said.append)
    go_on.set()


def test_what_cannot_be_is_refused_in_a_line(url, model, tmp_path, monkeypatch):
    cases = [
        (f"{url}/nowhere", "nothing is there"),
        ("nothing://x", "Protocol not known"),
        (f"{url}/my-model/..", "its last part is no name of a file"),
    ]
    cases += [("s3://no-such-bucket-here/x", "nothing is there")] if url.startswith("s3") else []
    for wrong, words in cases:
        with pytest.raises(ConfigError, match=words) as caught:
            fetch(Source(wrong, "--tasks.source"), tmp_path, 60, print)
        assert str(caught.value).startswith(f"--tasks.source {wrong}: ") and "\n" not in str(caught.value)
    full = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(urls.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ConfigError, match="make room"):
        fetch(Source(model, "--model.path"), tmp_path, 60, print)
    monkeypatch.setattr(urls, "_MOST_FILES", 2)
    with pytest.raises(ConfigError, match="3 files are there, at most 2"):
        fetch(Source(model, "--model.path"), tmp_path, 60, print)
    (tmp_path / "file").touch()
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="it cannot be kept in"):
        fetch(Source(model, "--model.path"), tmp_path / "file", 60, print)


def test_names_that_leave_their_directory_and_files_without_marks_are_refused(tmp_path):
    class Store:
        def __init__(self, path, info):
            self._found = {path: info}

        def info(self, root):
            return {"type": "directory"}

        def find(self, root, detail):
            return self._found

    whole = {"type": "file", "size": 1, "ETag": "x"}
    with pytest.raises(ConfigError, match="it would leave its directory"):
        urls._listed(Store("a/../../x", whole), "a", Source("x://a", "--tasks.source"))
    with pytest.raises(ConfigError, match="tells neither time nor checksum"):
        urls._listed(Store("a/x", whole | {"ETag": ""}), "a", Source("x://a", "--tasks.source"))


def test_a_file_url_is_used_where_it_is(tmp_path):
    assert (
        fetch(Source(f"file://{tmp_path}/model", "--model.path"), tmp_path / "cache", 60, print) == tmp_path / "model"
    )
    assert not (tmp_path / "cache").exists()
    assert [is_url(text) for text in ("s3://a", "/a", "a/b", "micro")] == [True, False, False, False]


def test_settings_come_with_paths_in_the_place_of_urls(model, url, tmp_path):
    for name in ("one.jsonl", "two.jsonl", "held-out.jsonl"):
        put(url, name, b"{}\n")
    sources = [{"source": f"{url}/one.jsonl"}, {"source": f"{url}/two.jsonl"}, {"source": "micro"}]
    settings = Settings(
        model={"path": model},
        tasks={"sources": sources, "cache_dir": tmp_path},
        eval={"tasks": f"{url}/held-out.jsonl"},
    )
    here = with_fetched_sources(settings, print)
    assert content(tmp_path / here.model.path)["model.safetensors"] == WEIGHTS
    places = [*(source.source for source in here.tasks.sources), here.eval.tasks]
    assert [place.rpartition("/")[2] for place in places] == ["one.jsonl", "two.jsonl", "micro", "held-out.jsonl"]
    assert [source.name for source in here.tasks.sources] == ["one", "two", "micro"]
    assert not any(map(is_url, [here.model.path, *places]))
    alone = Settings(tasks={"cache_dir": tmp_path})
    assert with_fetched_sources(alone, print) == alone


def test_a_preset_is_told_from_a_model_at_a_url_without_its_weights(url, tmp_path, monkeypatch):
    counted = Counted(monkeypatch)
    for path in TINY.iterdir():
        put(f"{url}/tiny", path.name, path.read_bytes())
    settings, command_line = parse([f"--model.path={url}/tiny", f"--tasks.cache-dir={tmp_path}"])
    assert settings.model.path == f"{url}/tiny"
    described = description(settings.model.path, tmp_path, 60)
    assert ModelFamily.read(described).heads == ModelFamily.read(TINY).heads
    assert command_line.from_preset == parse([f"--model.path={TINY}"])[1].from_preset
    assert counted.fetched and not [name for name in counted.fetched if name.endswith(".safetensors")]
    with pytest.raises(ConfigError, match=r"--model\.path .*/none: nothing is there"):
        parse([f"--model.path={url}/none", f"--tasks.cache-dir={tmp_path}"])
