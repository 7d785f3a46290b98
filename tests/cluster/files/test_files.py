"""Files reach another host by their content: whole, once, and nothing else."""

import shutil
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from cluster.files import serving
from cluster.files.content import Entry, Tree, is_safe, read_tree
from cluster.files.fetching import Fetcher
from cluster.files.relocation import describes, models, needed_files, relocated
from cluster.files.serving import FilesError, FileServer
from cluster.inputs import with_whole_paths
from protocol.config import EvalSettings, ModelSettings, Settings, TaskSettings
from protocol.config.sandbox.tasks import TaskSource
from protocol.errors import ConfigError, WireError
from protocol.sockets import Keys

KEYS = Keys.generate()


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A directory of several pieces."""
    monkeypatch.setattr(serving, "PIECE_BYTES", 1000)
    directory = tmp_path / "here" / "model"
    (directory / "deeper").mkdir(parents=True)
    (directory / "config.json").write_text('{"a": 1}')
    (directory / "deeper" / "empty").touch()
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (directory / ".cache").mkdir()
    (directory / ".cache" / "hidden").touch()
    return directory


@pytest.fixture
def server():
    server = FileServer("127.0.0.1", KEYS)
    yield server
    server.close()


def elsewhere(tree, tmp_path):
    """As a host sees it that has nothing at that path."""
    return structs.replace(tree, source=f"{tmp_path}/not-here/{tree.name}")


def content(place):
    return {p.relative_to(place).as_posix(): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def test_a_tree_arrives_whole_and_is_fetched_once(model, server, tmp_path):
    tree = read_tree(model)
    server.offer(tree)
    expected = {name: data for name, data in content(model).items() if not name.startswith(".")}
    fetcher = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    place = fetcher.bring(elsewhere(tree, tmp_path))
    assert place.name == "model" and content(place) == expected
    assert fetcher.fetched_bytes == sum(len(data) for data in expected.values())
    again = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    assert again.bring(elsewhere(tree, tmp_path)) == place and again.fetched_bytes == 0
    part = again.bring(elsewhere(tree, tmp_path).only(describes))
    assert set(content(part)) == {"config.json", "deeper/empty"} and part != place


def test_what_is_there_is_used_where_it_is(model, server, tmp_path):
    """On a file system that is shared, by the file's identity; in a copy, by its content."""
    tree = read_tree(model)
    fetcher = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    assert fetcher.bring(tree) == model
    copied = elsewhere(tree, tmp_path)
    shutil.copytree(model, copied.source)
    assert fetcher.bring(copied) == Path(copied.source) and fetcher.fetched_bytes == 0
    (Path(copied.source) / "config.json").write_text('{"a": 2}')  # as long, and another
    server.offer(tree)
    assert (fetcher.bring(copied) / "config.json").read_text() == '{"a": 1}'


def test_a_transfer_goes_on_where_it_stopped(model, server, tmp_path):
    tree = read_tree(model)
    server.offer(tree)
    large = max(tree.entries, key=lambda entry: entry.size)
    fetcher = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    partial = tmp_path / "cache" / "objects" / f"{large.sha256}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes((model / large.path).read_bytes()[:2500])
    fetcher.bring(elsewhere(tree, tmp_path))
    assert fetcher.fetched_bytes == sum(entry.size for entry in tree.entries) - 2500
    assert not list(partial.parent.glob("*.partial"))


def test_bytes_that_are_not_its_own_are_found_and_forgotten(model, server, tmp_path):
    tree = read_tree(model)
    server.offer(tree)
    large = max(tree.entries, key=lambda entry: entry.size)
    partial = tmp_path / "cache" / "objects" / f"{large.sha256}.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"damaged")
    fetcher = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    with pytest.raises(FilesError, match=r"model\.safetensors arrived with another content"):
        fetcher.bring(elsewhere(tree, tmp_path))
    assert content(fetcher.bring(elsewhere(tree, tmp_path)))["model.safetensors"] == (model / large.path).read_bytes()


def test_a_file_that_became_shorter_is_named(model, server, tmp_path):
    tree = read_tree(model)
    server.offer(tree)
    (model / "model.safetensors").write_bytes(b"short")
    with pytest.raises(FilesError, match=r"model\.safetensors: it ended after 5 of 10240 bytes"):
        Fetcher(tmp_path / "cache", server.endpoint, KEYS).bring(elsewhere(tree, tmp_path))


def test_only_what_is_offered_is_served_and_only_to_the_run(model, server, tmp_path):
    tree = read_tree(model)
    with pytest.raises(WireError, match="no file of content"):
        Fetcher(tmp_path / "cache", server.endpoint, KEYS).bring(elsewhere(tree, tmp_path))


def test_a_tree_that_leaves_its_place_is_refused(server, tmp_path):
    fetcher = Fetcher(tmp_path / "cache", server.endpoint, KEYS)
    for path in ("../x", "/etc/x", "a/../../x"):
        with pytest.raises(FilesError, match="is refused"):
            fetcher.bring(Tree("/not/here", (Entry(path, 1, "0" * 64),)))


def test_a_host_without_room_is_told(model, server, tmp_path, monkeypatch):
    tree = elsewhere(read_tree(model), tmp_path)
    huge = Tree(tree.source, tuple(structs.replace(entry, size=1 << 60) for entry in tree.entries))
    with pytest.raises(FilesError, match="make room"):
        Fetcher(tmp_path / "cache", server.endpoint, KEYS).bring(huge)


def test_many_fill_one_cache_at_once(model, server, tmp_path):
    tree = read_tree(model)
    server.offer(tree)
    places, fetchers = [], [Fetcher(tmp_path / "cache", server.endpoint, KEYS) for _ in range(4)]
    threads = [
        threading.Thread(target=lambda f=fetcher: places.append(f.bring(elsewhere(tree, tmp_path))))
        for fetcher in fetchers
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(places) == 4 and len(set(places)) == 1
    assert sum(fetcher.fetched_bytes for fetcher in fetchers) == sum(entry.size for entry in tree.entries)
    assert not list((tmp_path / "cache" / "trees").glob("*.*"))


def test_a_single_file_keeps_its_name(server, tmp_path):
    """Formats are told by it."""
    (tmp_path / "tasks.jsonl").write_text("{}\n")
    tree = read_tree(tmp_path / "tasks.jsonl")
    server.offer(tree)
    place = Fetcher(tmp_path / "cache", server.endpoint, KEYS).bring(elsewhere(tree, tmp_path))
    assert place.name == "tasks.jsonl" and place.read_text() == "{}\n"


def test_what_cannot_be_read_is_said(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="other hosts need it"):
        read_tree(tmp_path / "model")


@given(st.text(alphabet="a./\0", max_size=12))
def test_a_safe_path_stays_below(path):
    if is_safe(path):
        below = Path("/x/y") / path
        assert ".." not in below.parts and below.parts[:3] == ("/", "x", "y")


def test_settings_name_their_files_and_take_other_places(tmp_path):
    names = ["model", "one.jsonl", "two", "held-out.jsonl"]
    for name in names:
        (tmp_path / name).touch()
    model, one, two, held_out = (str(tmp_path / name) for name in names)
    sources = [TaskSource(source=one), TaskSource(source=two), TaskSource(source="micro"), TaskSource(source="a/set")]
    settings = Settings(
        model=ModelSettings(path=model), tasks=TaskSettings(sources=sources), eval=EvalSettings(tasks=held_out)
    )
    assert needed_files(settings) == [model, one, two, held_out]
    moved = relocated(settings, {path: f"/cache{path}" for path in needed_files(settings)})
    assert [moved.model.path, *(source.source for source in moved.tasks.sources), moved.eval.tasks] == [
        f"/cache{model}",
        f"/cache{one}",
        f"/cache{two}",
        "micro",
        "a/set",
        f"/cache{held_out}",
    ]
    assert relocated(settings, {}) == settings


def test_a_reference_model_is_a_file_of_the_run_where_there_is_a_learner(tmp_path):
    """Its weights go where models are loaded, as the policy's."""
    for name in ("model", "teacher"):
        (tmp_path / name).mkdir()
    model, teacher = (str(tmp_path / name) for name in ("model", "teacher"))
    settings = Settings(model={"path": model}, learner={"loss": {"reference": teacher}})
    assert models(settings) == needed_files(settings) == [model, teacher]
    assert relocated(settings, {teacher: "/cache/teacher"}).learner.loss.reference == Path("/cache/teacher")
    assert models(settings.model_copy(update={"phase": "eval"})) == [model]


def test_every_path_is_the_launching_users(tmp_path, monkeypatch):
    """Processes of a cluster that was joined stand where Ray was started."""
    for name in ("model", "teacher", "one.jsonl", "held-out.jsonl"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    settings = Settings(
        model={"path": "model"},
        tasks={"sources": [{"source": "one.jsonl"}, {"source": "micro"}, {"source": "a/set"}], "cache_dir": "cache"},
        eval={"tasks": "held-out.jsonl"},
        learner={"loss": {"reference": "teacher"}},
        replay={"pass_rates": "rates.json"},
        sandbox={"docker_tls_dir": "tls"},
    )
    whole = with_whole_paths(settings)
    paths = [whole.model.path, whole.learner.loss.reference, whole.eval.tasks, whole.replay.pass_rates]
    paths += [whole.sandbox.docker_tls_dir, whole.tasks.cache_dir]
    names = ["model", "teacher", "held-out.jsonl", "rates.json", "tls", "cache"]
    assert [str(path) for path in paths] == [str(tmp_path / name) for name in names]
    assert [one.source for one in whole.tasks.sources] == [str(tmp_path / "one.jsonl"), "micro", "a/set"]
    assert with_whole_paths(Settings()).tasks.cache_dir == Settings().tasks.cache_dir  # `~` is each host's own
