"""Writes checkpoints while training goes on.

    all ranks, together    copy the policy's state to host memory: the cut
    each rank, in a thread write its part, force it to disk, give it its final name
    rank 0's thread        wait for every part, write the manifest, rename the directory, tell the replay buffer

A rank that cannot write renames the unfinished directory away, which is how the others learn of it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from learner.checkpoints.checkpoint import (
    FORMAT,
    MANIFEST,
    PARTIAL,
    best_step,
    directory,
    fingerprint,
    kept,
    step_of,
)
from learner.checkpoints.export import copy_config, copy_tokenizer
from learner.checkpoints.state import full_state
from learner.checkpoints.wrapper import copy_wrapper, is_text_part, whole
from learner.held_out import expendable
from learner.training.adapters import adapter_config
from learner.training.model import Policy
from protocol.config import Settings
from protocol.errors import CheckpointError, DeadlineError, LonghaulError
from protocol.messages import CheckpointMarkReply
from protocol.threads import give_way

_log = logging.getLogger(__name__)
_GATHER_BYTES = 256 << 20
_LOOK_S = 0.05
_GRACE_S = 5.0


class CheckpointWriter:
    """Every rank has one, and all call `save` together; at most one checkpoint is being written.

    Args:
        mark: called by rank 0's thread with the version and path of a complete checkpoint; returns the journal position
            that belongs to it, and the versions that evaluations still want.
    """

    def __init__(
        self, settings: Settings, run_dir: Path, policy: Policy, mark: Callable[[int, Path], CheckpointMarkReply]
    ) -> None:
        self._keep, self._keeps_best = settings.checkpoint.keep, settings.checkpoint.keep_best
        self._timeout_s = settings.learner.step_timeout_s
        self._source = Path(settings.model.path)
        self._run_dir = run_dir
        self._policy = policy
        self._mark = mark
        self._group = policy.group
        self._thread: threading.Thread | None = None
        self._closing_at: float | None = None
        self.num_failed = 0
        self.blocked_s = 0.0  # of training, by the last save
        if self._group.rank == 0:
            for left in directory(run_dir).glob(f"step-*{PARTIAL}"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, version: int) -> None:
        """Take the state of now as version `version` and begin to write it. What fails is counted and logged, and
        leaves the older checkpoints as they are.

        Waits for the save before this one, `step_timeout_s` at most, and for the other ranks.
        """
        started = time.monotonic()
        self.wait()
        partial = directory(self._run_dir) / f"step-{version}{PARTIAL}"
        if self._begin(partial):
            manifest = {
                "format": FORMAT,
                "version": version,
                "num_updates": self._policy.num_updates,
                "model": fingerprint(self._policy),
                "rng": torch.get_rng_state().tolist(),
            }
            mine, exported = self._gather(), dict(self._policy.full_weights(_GATHER_BYTES))
            adapters = dict(self._policy.adapters(_GATHER_BYTES)) if self._policy.lora_rank else {}
            self._thread = threading.Thread(
                target=self._write_all,
                args=(partial, mine, exported, adapters, manifest),
                name="checkpoint",
                daemon=True,
            )
            self._thread.start()
        self.blocked_s = time.monotonic() - started

    def wait(self) -> None:
        """Return once nothing is being written. Raises `DeadlineError` after `step_timeout_s`."""
        if self._thread is None:
            return
        self._thread.join(self._timeout_s)
        if self._thread.is_alive():
            raise DeadlineError(f"a checkpoint was not written within {self._timeout_s:g} s", kind="checkpoint")
        self._thread = None

    def close(self) -> None:
        """End within seconds: what is in hand is written, and other ranks are waited for no longer than that."""
        self._closing_at = time.monotonic()
        if self._thread is not None:
            self._thread.join(2 * _GRACE_S)

    def _begin(self, partial: Path) -> bool:
        """Whether rank 0 could make the directory; the same on all ranks."""
        failure = ""
        if self._group.rank == 0:
            try:
                shutil.rmtree(partial, ignore_errors=True)
                (partial / "hf").mkdir(parents=True)
            except OSError as error:
                failure = str(error)
        failed = bool(self._group.sum(torch.tensor([float(bool(failure))], device=self._group.device)))
        if failed:
            self._note(partial, failure or "rank 0 could not make the directory")
        return not failed

    def _gather(self) -> dict[str, Tensor]:
        """The parameters that this rank writes: every `ranks`-th one."""
        rank, ranks = self._group.rank, self._group.world_size
        mine: dict[str, Tensor] = {}
        for index, (name, parts) in enumerate(full_state(self._policy)):
            if index % ranks == rank:
                mine |= {f"{name}|{part}": tensor.contiguous() for part, tensor in parts.items()}
        return mine

    # --- the thread -----------------------------------------------------------------------------------------------

    def _write_all(
        self,
        partial: Path,
        mine: dict[str, Tensor],
        exported: dict[str, Tensor],
        adapters: dict[str, Tensor],
        manifest: dict[str, Any],
    ) -> None:
        give_way()
        try:
            inode = partial.stat().st_ino
            if exported:
                self._write_model(partial / "hf", exported)
            if adapters:
                self._write_adapters(partial / "adapter", adapters)
            _write_tensors(partial / _state_file(self._group.rank), mine)
            if self._group.rank == 0:
                self._await_parts(partial, inode)
                self._finish(partial, manifest)
        except Exception as error:  # whatever it was: it ends this checkpoint, not the run
            _remove(partial)
            self._note(partial, str(error))

    def _write_model(self, folder: Path, exported: dict[str, Tensor]) -> None:
        """As a Hugging Face directory: of a text part, the whole that it was taken from."""
        source = self._source
        named = {name: tensor.contiguous() for name, tensor in exported.items()}  # experts are slices
        if is_text_part(self._source):
            named, source = whole(self._source, named), copy_wrapper(self._source, folder)
        _write_tensors(folder / "model.safetensors", named)
        copy_config(source, folder, self._policy.dtype)
        copy_tokenizer(self._source, folder)

    def _write_adapters(self, folder: Path, adapters: dict[str, Tensor]) -> None:
        """As peft has them, to be put onto the base that the run began with."""
        folder.mkdir()
        config = adapter_config(self._policy.module.causal_lm, self._policy.lora_rank, str(self._source))
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
        named = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in adapters.items()}
        _write_tensors(folder / "adapter_model.safetensors", named)

    def _await_parts(self, partial: Path, inode: int) -> None:
        """Waits for the other ranks' files: who fails takes the directory away, for who died there is a deadline."""
        started = time.monotonic()
        parts = [partial / _state_file(rank) for rank in range(self._group.world_size)]
        while missing := [part.name for part in parts if not part.exists()]:
            if not partial.exists() or partial.stat().st_ino != inode:
                raise CheckpointError("another rank could not write its part", kind="write")
            now, closing_at = time.monotonic(), self._closing_at
            if now - started > self._timeout_s or (closing_at is not None and now - closing_at > _GRACE_S):
                raise CheckpointError(f"{', '.join(missing)} did not come", kind="write")
            time.sleep(_LOOK_S)

    def _finish(self, partial: Path, manifest: dict[str, Any]) -> None:
        sizes = {path.name: path.stat().st_size for path in sorted(partial.glob("state-*.safetensors"))}
        _write_json(partial / MANIFEST, manifest | {"state_files": sizes})
        final = partial.with_suffix("")
        _remove(final)
        partial.rename(final)
        sync_directory(final.parent)
        try:
            reply = self._mark(manifest["version"], final)
            _write_json(final / "replay.json", {"journal_offset": reply.journal_offset})
        except LonghaulError as error:  # it keeps more of its journal than it needs to, until the next mark
            _log.warning("the replay buffer was not told of %s: %s", final, error)
            if self._keeps_best:  # which one that is was not said
                return
            reply = CheckpointMarkReply(journal_offset=0)
        best = best_step(self._run_dir)  # what is pointed to stays until the pointer has moved
        wanted = [*reply.wanted, *([best] if best is not None else [])] if self._keeps_best else []
        there = {step_of(path): path for path in kept(self._run_dir)}
        for step in expendable(there, self._keep, wanted):
            _remove(there[step])

    def _note(self, partial: Path, failure: str) -> None:
        self.num_failed += self._group.rank == 0  # it hears of every failure
        _log.error("cannot write %s: %s; the run goes on without this checkpoint", partial, failure)


def _remove(directory: Path) -> None:
    """From one moment to the next: no half of it is ever taken for a checkpoint."""
    away = directory.with_name(f"{directory.name}.away{PARTIAL}")
    shutil.rmtree(away, ignore_errors=True)
    with contextlib.suppress(OSError):
        directory.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def _state_file(rank: int) -> str:
    return f"state-{rank:05}.safetensors"


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """The file has its name when all of it is on disk."""
    temporary = path.with_suffix(".tmp")
    try:
        save_file(tensors, temporary, metadata={"format": "pt"})
    except SafetensorError as error:  # how a full disk shows
        raise OSError(str(error)) from error
    sync_file(temporary)
    temporary.rename(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    sync_file(temporary)
    temporary.rename(path)


def sync_file(path: Path) -> None:
    """Force a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Force a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
