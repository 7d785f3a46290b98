"""What is checked before seconds are spent on starting vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from actors.generator.engine import check, engine_arguments, engine_environment, kv_bytes_per_token
from protocol.config import GeneratorSettings, ModelSettings, Settings
from protocol.errors import ConfigError
from tiny.model import save_random_model


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"))


def settings(model_dir: Path, *, max_context: int = 1024, kv_cache_mib: int = 0) -> Settings:
    return Settings(
        model=ModelSettings(path=str(model_dir), max_context=max_context, dtype="float32"),
        generator=GeneratorSettings(kv_cache_mib=kv_cache_mib),
    )


def altered(model_dir: Path, tmp_path: Path, **fields: object) -> Path:
    """A copy of the model whose configuration says something else."""
    for file in model_dir.iterdir():
        (tmp_path / file.name).symlink_to(file)
    config = json.loads((model_dir / "config.json").read_text()) | fields
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_good_model_passes(model_dir):
    shape = check(settings(model_dir), model_dir, on_gpu=False)
    assert (shape.vocab_size, shape.layers, shape.kv_heads, shape.head_size, shape.tied) == (512, 2, 2, 32, True)
    assert kv_bytes_per_token(shape, "float32") == 2 * 2 * 2 * 32 * 4


def test_a_missing_model_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is no Hugging Face model directory: config.json: No such file"):
        check(settings(tmp_path), tmp_path / "nowhere", on_gpu=False)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"architectures": []}', '{"num_attention_heads": "x"}'])
def test_a_broken_configuration_is_one_line(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json") as caught:
        check(settings(tmp_path), tmp_path, on_gpu=False)
    assert "\n" not in str(caught.value)


def test_heads_that_the_cpu_kernels_refuse_are_refused_before_the_start(model_dir, tmp_path):
    small = altered(model_dir, tmp_path, hidden_size=64)
    with pytest.raises(ConfigError, match="heads of size 16; the CPU kernels take 32 or more"):
        check(settings(small), small, on_gpu=False)
    check(settings(small), small, on_gpu=True)


def test_a_context_beyond_the_model_is_refused(model_dir):
    with pytest.raises(ConfigError, match=r"max_context is 8192, but .* knows 4096 positions"):
        check(settings(model_dir, max_context=8192), model_dir, on_gpu=False)


def test_a_kv_cache_that_cannot_hold_one_sequence_is_refused(model_dir):
    with pytest.raises(ConfigError, match="gives 1 MiB, but one sequence of 4096 tokens takes 5 MiB"):
        check(settings(model_dir, max_context=4096, kv_cache_mib=1), model_dir, on_gpu=False)


def test_more_memory_than_the_machine_has_is_refused(model_dir):
    with pytest.raises(ConfigError, match=r"this machine has .* MiB left"):
        check(settings(model_dir, kv_cache_mib=1 << 24), model_dir, on_gpu=False)


@pytest.mark.parametrize("fp8", ["kv_cache", "weights"])
def test_fp8_is_for_gpus_and_quantised_weights_are_for_evaluations(model_dir: Path, fp8: str) -> None:
    training = Settings(
        model=ModelSettings(path=str(model_dir), max_context=1024), generator=GeneratorSettings(fp8=fp8)
    )
    evaluation = training.model_copy(update={"phase": "eval"})
    with pytest.raises(ConfigError, match="needs a GPU"):
        check(evaluation, model_dir, on_gpu=False)
    check(evaluation, model_dir, on_gpu=True)
    said = engine_arguments(evaluation, model_dir, on_gpu=True)
    assert (said["kv_cache_dtype"], said.get("quantization")) == ("fp8", "fp8" if fp8 == "weights" else None)
    assert "kv_cache_dtype" not in engine_arguments(settings(model_dir), model_dir, on_gpu=True)
    if fp8 == "weights":
        with pytest.raises(ConfigError, match="is for evaluations"):
            check(training, model_dir, on_gpu=True)
    else:
        check(training, model_dir, on_gpu=True)


def test_a_directory_without_weights_is_refused(model_dir, tmp_path):
    (tmp_path / "config.json").write_text((model_dir / "config.json").read_text())
    with pytest.raises(ConfigError, match=r"holds no .*safetensors weights"):
        check(settings(tmp_path), tmp_path, on_gpu=False)


def test_the_environment_names_the_threads():
    assert engine_environment(GeneratorSettings(threads=3))["OMP_NUM_THREADS"] == "3"


def test_an_engine_whose_exchange_failed_decodes_nothing_more() -> None:
    """The call that resumes it is on its way already: only its end keeps it from serving what nobody can name."""
    failing = (
        "from actors.generator.vllm_worker import GeneratorWorker\n"
        "worker = GeneratorWorker.__new__(GeneratorWorker)\n"
        "worker._adopt_staging = None\n"  # of no model: the exchange cannot work
        "worker.adopt_swap()\n"
        "print('resumed')\n"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, timeout=240, cwd=root)
    assert ended.returncode == 1
    assert "resumed" not in ended.stdout
    assert "AttributeError" in ended.stderr


def test_engines_that_record_routes_capture_no_graphs(tmp_path: Path) -> None:
    recording = Settings.model_validate({"model": {"path": str(tmp_path)}, "learner": {"routing_replay": True}})
    assert engine_arguments(recording, tmp_path, on_gpu=True)["enforce_eager"]
    scoring = recording.model_copy(update={"phase": "eval"})
    for other in (Settings(), scoring):
        assert "enforce_eager" not in engine_arguments(other, tmp_path, on_gpu=True)
