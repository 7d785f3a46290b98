"""The same step elsewhere: `python -m benchmarks.learner.peers {hf,trl} MODEL LENGTH STEPS` prints its seconds.

One document of LENGTH tokens, float32, AdamW, negative log-likelihood, one process with all its threads: Hugging Face's
`Trainer`, and TRL's `SFTTrainer`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class _Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.perf_counter() - self._started)


def options(folder: str, steps: int) -> dict[str, Any]:
    """Training arguments that both share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "max_steps": steps,
        "learning_rate": 1e-5,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_tqdm": True,
    }


def hugging_face(model: Any, ids: list[int], steps: int, clock: _Clock) -> None:
    """A step of `transformers.Trainer`."""
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": torch.tensor(ids), "labels": torch.tensor(ids)}] * steps
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(**options(folder, steps))
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()  # type: ignore[arg-type]


def trl(model: Any, tokenizer: Any, ids: list[int], steps: int, clock: _Clock) -> None:
    """A step of `trl.SFTTrainer`."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_dict({"input_ids": [ids] * steps})
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(**options(folder, steps), max_length=len(ids))
        SFTTrainer(
            model=model, args=arguments, train_dataset=rows, processing_class=tokenizer, callbacks=[clock]
        ).train()


def main(which: str, path: str, length: int, steps: int) -> None:
    """Print a JSON list of seconds."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, length).tolist()
    clock = _Clock()
    if which == "hf":
        hugging_face(model, ids, steps, clock)
    else:
        trl(model, AutoTokenizer.from_pretrained(path), ids, steps, clock)
    print(json.dumps(clock.seconds))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
