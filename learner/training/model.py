"""The policy: a Hugging Face causal language model under DeepSpeed ZeRO with Ulysses sequence parallelism."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from learner.objectives.registry import loss_settings, objective_named
from learner.packing import attention_length_of
from learner.ranks.group import RankGroup
from learner.training.adapters import Export, add_adapters, exports, factors
from learner.training.attention import attention_for
from learner.training.file_names import FileNames, kept_buffers, mark_expert_lists
from learner.training.logprobs import TokenLogprobs
from learner.training.mlp import tile_mlps
from learner.training.noise import silence
from learner.training.reference import checked_reference
from learner.training.routing import Routing
from protocol.config import LearnerSettings, Settings
from protocol.errors import ConfigError, border
from protocol.model_family import ModelFamily

_PREFIX = "causal_lm."


def import_deepspeed() -> Any:
    """DeepSpeed without its start-up builds and chatter.

    On CPU `init_distributed` would compile an operator that only inference uses, and would wait for ever for the lock
    of a build that was killed.
    """
    on_cpu = not torch.cuda.is_available()
    if on_cpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # found by itself too, with a warning
    warnings.filterwarnings("ignore", "`torch.distributed.* is deprecated", FutureWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        import deepspeed.ops
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if on_cpu:
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


class Policy:
    """The model being trained, on this rank.

    Args:
        settings: of the run.
        group: the learner's ranks.

    Raises:
        ConfigError: the model cannot be trained exactly with these settings.
    """

    def __init__(self, settings: Settings, group: RankGroup) -> None:
        learner, path = settings.learner, Path(settings.model.path)
        self.group = group
        self.zero_stage = learner.zero_stage
        self.lora_rank = learner.lora_rank
        self.config = checked_config(path, settings)
        self.dtype = _dtype(settings, group)
        self._deepspeed = import_deepspeed()
        self._deepspeed.init_distributed(verbose=False)
        attention = attention_for(self.config, group.device, self.dtype)
        mpu = _register_ulysses(path, attention, group.sequence_parallel)
        causal_lm = self._load(path, attention, learner).train()
        if learner.gradient_checkpointing:
            causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
        if learner.mlp_tile:
            tile_mlps(causal_lm, learner.mlp_tile)
        if learner.lora_rank:
            add_adapters(causal_lm, learner.lora_rank, settings.seed)
        if learner.zero_stage == 3:
            mark_expert_lists(causal_lm, self._deepspeed.utils.set_z3_leaf_modules)
        self._file_names = FileNames(causal_lm)
        self.routing = Routing(causal_lm)
        self.routing.check(replay=learner.routing_replay, balance=learner.router_aux_coef > 0)
        with_values = objective_named(loss_settings(settings).name).targets is not None
        self.module = self._with_logprobs(causal_lm, settings, with_values)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.module, learner.weight_decay), lr=learner.lr, betas=learner.betas, fused=False
        )
        self.engine, *_ = self._deepspeed.initialize(
            model=self.module, config=self._engine_config(learner), mpu=mpu, optimizer=self.optimizer
        )
        _create_moments(self.optimizer, self.engine.optimizer)
        self._reference = self._load_reference(attention, settings, mpu)
        self.num_updates = 0
        self.vocab_size = int(self.config.vocab_size)
        self.num_parameters = sum(_full_size(p) for p in self.module.parameters())
        self.attention_length = attention_length_of(
            self.num_parameters, self.config.num_hidden_layers, self.config.hidden_size
        )

    @property
    def gradient_multiplier(self) -> float:
        """What a rank's loss is multiplied with so that gradients are sums over ranks.

        DeepSpeed divides the sum by the number of data-parallel groups at stages 0 to 2, by all ranks at stage 3.
        """
        return self.group.world_size if self.zero_stage == 3 else self.group.data_parallel

    def logprobs(
        self, token_ids: Tensor, positions: Tensor, targets: Tensor, experts: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probs, entropies and, with a value head, values of this rank's slice of the positions, float32
        [positions]; `experts`: the routes to take (`Routing.replay`)."""
        self.routing.replay(experts)
        logprobs, entropies, *values = self.engine(token_ids[None], positions[None], targets[None])
        return logprobs[0], entropies[0], values[0][0] if values else None

    @torch.no_grad()
    def reference_logprobs(self, token_ids: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """Log-probs under the reference policy of this rank's slice of the positions, float32 [positions]."""
        assert self._reference is not None, "no reference policy is loaded"
        logprobs: Tensor = self._reference(token_ids[None], positions[None], targets[None])[0]
        return logprobs[0]

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add the gradient of `loss`, the sum over this rank's tokens; `is_last`: of the step."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        self.engine.backward(loss * self.gradient_multiplier, scale_wrt_gas=False)
        if not is_last:
            self.engine.step()

    def update(self, learning_rate: float) -> float:
        """Apply the accumulated gradient; returns its norm before clipping, not finite if the update was skipped."""
        for parameters in self.engine.optimizer.param_groups:
            parameters["lr"] = learning_rate
        norm = self._plain_gradient_norm() if self.zero_stage == 0 else None
        self.engine.step()
        self.num_updates += 1
        return float(self.engine.get_global_grad_norm()) if norm is None else norm

    def trained_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Hugging Face's name of every parameter that is trained, and the parameter, in the model's order."""
        named = self.module.named_parameters()
        return [(name.removeprefix(_PREFIX), parameter) for name, parameter in named if parameter.requires_grad]

    def full_weights(self, bucket_bytes: int, *, copy: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every tensor of the model's files, in the compute dtype, on CPU; adapters are merged and a
        tied output projection is not repeated. Buffers keep their own dtype.

        Collective at stage 3: every rank drains it. Other ranks than 0 get nothing. At most `bucket_bytes` beyond the
        shards are in memory. Without `copy` a tensor may be the parameter itself: for who reads it before the next one.
        """
        yield from self._in_buckets(exports(self.module.causal_lm), bucket_bytes, copy)
        if not self.group.rank:
            for name, buffer in kept_buffers(self.module.causal_lm):
                yield from self._file_names.of(name, buffer.detach().to("cpu", copy=copy))

    def adapters(self, bucket_bytes: int, *, copy: bool = True) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every adapter's factors, as `full_weights` gives whole tensors."""
        yield from self._in_buckets(factors(self.module.causal_lm), bucket_bytes, copy)

    def _in_buckets(self, leaving: Iterator[Export], bucket_bytes: int, copy: bool) -> Iterator[tuple[str, Tensor]]:
        bucket: list[Export] = []
        size = 0
        for export in leaving:
            num_bytes = sum(_full_size(p) * p.element_size() for p in export.parameters)
            if bucket and size + num_bytes > bucket_bytes:
                yield from self._gathered(bucket, copy)
                bucket, size = [], 0
            bucket.append(export)
            size += num_bytes
        yield from self._gathered(bucket, copy)

    def _gathered(self, bucket: list[Export], copy: bool) -> list[tuple[str, Tensor]]:
        parameters = [parameter for export in bucket for parameter in export.parameters]
        with torch.no_grad(), self._deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage == 3):
            if self.group.rank:
                return []
            copy = copy or self.zero_stage == 3  # what was gathered is freed on the way out
            return [
                named
                for export in bucket
                for named in self._file_names.of(export.name, export.value().detach().to("cpu", self.dtype, copy=copy))
            ]

    def _plain_gradient_norm(self) -> float:
        norms = [p.grad.float().norm() for p in self.module.parameters() if p.grad is not None]
        return float(torch.stack(norms).norm())

    def _load(self, path: Path, attention: str, learner: LearnerSettings) -> Any:
        if learner.zero_stage == 3:  # transformers asks for this object to load shards instead of the whole
            from transformers.integrations import HfDeepSpeedConfig

            self._sharded_loading = HfDeepSpeedConfig(self._engine_config(learner))
        disable_progress_bar()
        causal_lm = AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype, attn_implementation=attention)
        silence(causal_lm)
        return causal_lm

    def _load_reference(self, attention: str, settings: Settings, mpu: Any) -> nn.Module | None:
        """The reference policy, frozen, if the loss asks for it; at stage 3 in shards like the trained one."""
        path = checked_reference(settings, self.group.sequence_parallel)
        if path is None:
            return None
        reference = self._with_logprobs(self._load(path, attention, settings.learner), settings)
        reference.requires_grad_(False).eval()
        if self.zero_stage < 3:
            return reference.to(self.group.device)
        sharded, *_ = self._deepspeed.initialize(model=reference, config=self._engine_config(settings.learner), mpu=mpu)
        assert isinstance(sharded, nn.Module)
        return sharded

    def _with_logprobs(self, causal_lm: Any, settings: Settings, with_values: bool = False) -> TokenLogprobs:
        learner = settings.learner
        return TokenLogprobs(
            causal_lm,
            learner.logprob_chunk,
            settings.episode.temperature or 1.0,
            entropy_gradient=learner.loss.entropy_coef > 0,
            with_values=with_values,
        )

    def _engine_config(self, learner: LearnerSettings) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": learner.zero_stage}
        if learner.zero_stage == 3:
            zero["stage3_param_persistence_threshold"] = 0 if self.group.device.type == "cpu" else 100_000
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,  # the boundary is set by hand: the number of micro-batches varies
            "gradient_clipping": learner.grad_clip,
            "sequence_parallel_size": self.group.sequence_parallel,
            "bf16": {"enabled": self.dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "zero_allow_untested_optimizer": True,
            "zero_optimization": zero,
            "steps_per_print": 10**9,
        }


def vocabulary_of(path: Path) -> int:
    """One more than the largest id of the tokenizer in a model directory. Raises `ConfigError`."""
    return 1 + max(_tokenizer(path).get_vocab(with_added_tokens=True).values())


def _tokenizer(path: Path) -> Tokenizer:
    with border(ConfigError, f"a readable {path}/tokenizer.json", kind="tokenizer"):
        return Tokenizer.from_file(str(path / "tokenizer.json"))


def checked_config(path: Path, settings: Settings) -> PreTrainedConfig:
    """The model's configuration, before anything is loaded. Raises `ConfigError` if it cannot be trained exactly."""
    family = ModelFamily.read(path)
    family.check_trained(settings.model.max_context, settings.learner.lora_rank)
    assert not family.wraps, "a run trains the text part, which is a model of its own"
    if (vocabulary := vocabulary_of(path)) > family.vocab_size:
        raise ConfigError(
            f"{path}: the tokenizer has {vocabulary} tokens, the model only {family.vocab_size}", kind="tokenizer"
        )
    with border(ConfigError, f"{path}/config.json to be a model's configuration", kind="model"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
    return config


def _dtype(settings: Settings, group: RankGroup) -> torch.dtype:
    if settings.model.dtype == "auto":
        return torch.bfloat16 if group.device.type == "cuda" else torch.float32
    named: torch.dtype = getattr(torch, settings.model.dtype)
    return named


def _register_ulysses(path: Path, attention: str, sequence_parallel: int) -> Any:
    """Ulysses around `attention`; the groups of ranks as DeepSpeed wants them, None for one rank a sequence."""
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    parallel_state_sp._release_sequence_parallel_groups()  # of an earlier policy in this process

    return UlyssesSPAttentionHF.register_with_transformers(str(path), attention, sequence_parallel, micro_batch_size=1)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices only, not on biases and norms."""
    trained = [p for p in module.parameters() if p.requires_grad]
    matrices = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) > 1]
    vectors = [p for p in trained if len(getattr(p, "ds_shape", p.shape)) <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _create_moments(optimizer: torch.optim.Optimizer, engine_optimizer: Any) -> None:
    """AdamW's state as it is before the first step, so that memory is taken and a checkpoint can be read at once."""
    in_groups = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    for flat in getattr(engine_optimizer, "fp32_partitioned_groups_flat", in_groups):  # the former at stage 3
        optimizer.state[flat] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.zeros_like(flat, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(flat, memory_format=torch.preserve_format),
        }
    # ZeRO-1 and 2 link parameters to moments in the first group's first step, when the other groups have none yet
    if link := getattr(engine_optimizer, "_lazy_init_hp_params_optimizer_state", None):
        link()


def _full_size(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))
