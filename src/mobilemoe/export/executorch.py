"""A program (.pte) for ExecuTorch's runtime and its text runner, with the tokenizer beside it (spec section 7)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mobilemoe.checkpoint import Checkpoint, Report
from mobilemoe.checkpoint.companions import copy_companions
from mobilemoe.config import GROUP_SIZE, ModelConfig
from mobilemoe.config_rules import FULL
from mobilemoe.errors import CheckpointError, ConfigError, MissingExtraError, TokenizerError, UsageError
from mobilemoe.export.executorch_weights import Weights
from mobilemoe.files import atomic_folder, refuse_existing, write_atomic
from mobilemoe.progress import tell
from mobilemoe.tokenizer import Tokenizer

PROGRAM = "model.pte"
_DEFAULT_CONTEXT = 2048
_STAGES = "stages of ExecuTorch's export"
_SHORTEST = 16  # a cache for less is of no use, and torch.export takes short lengths for fixed ones


def write_executorch(folder: Path, out: Path, context: int | None = None) -> Report:
    """Writes the checkpoint in `folder` as the new folder `out`: model.pte, the tokenizer, the model card.

    context: tokens that fit the KV cache, prompt and answer together (None: 2,048, or all of a shorter model).
    Weights that are not INT4 along their inputs are rounded; the report says by how much. UsageError for a context that
    the model does not have, ConfigError where ExecuTorch does not compute what the model does, CheckpointError,
    TokenizerError, MissingExtraError.
    """
    refuse_existing(out, CheckpointError)
    with Checkpoint.open(folder) as source:
        check_runs(source.config)
        slots = _slots(source.config, context)
        tokenizer = _tokenizer(folder, source.config)
        with _quiet(), atomic_folder(out, CheckpointError) as part:  # first, since a program takes minutes
            program, report = _program(source, slots, metadata(source.config, tokenizer, slots))
            with open(part / PROGRAM, "wb") as file:
                program.write_to_file(file)
            copy_companions(folder, part)
            if tokenizer is not None and not (part / "tokenizer.json").exists():
                write_atomic(part / "tokenizer.json", tokenizer.to_json())  # of other files it knows no special tokens
        return report


def check_runs(config: ModelConfig) -> None:
    """ConfigError that names what in `config` ExecuTorch's operators do not compute: there it would end the process."""
    grouped = {
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "intermediate_size_mlp": config.intermediate_size_mlp,
        "num_attention_heads * head_dim": config.num_attention_heads * config.head_dim,
    }
    reasons = {
        "norm_topk_prob is false": config.is_moe and not config.norm_topk_prob,
        "some layers have sliding windows": any(kind != FULL for kind in config.layer_types),
        **{f"{name} is {n}, no multiple of {GROUP_SIZE}": n % GROUP_SIZE != 0 for name, n in grouped.items()},
    }
    found = next((reason for reason, holds in reasons.items() if holds), None)
    if found is not None:
        raise ConfigError(f"ExecuTorch has no operator for this model: {found}")


def metadata(config: ModelConfig, tokenizer: Tokenizer | None, slots: int) -> dict[str, Any]:
    """What ExecuTorch's text runner asks a program, by the names of its methods.

    A prompt may be as long as the cache: the runner takes a shorter limit for that of a sliding window, and then no
    longer counts the tokens of earlier turns, so that a conversation would overflow the cache.
    """
    known = () if tokenizer is None else tokenizer.stop_ids
    bos = config.bos_token_id if tokenizer is None else tokenizer.bos_id
    return {
        "get_max_seq_len": slots,
        "get_max_context_len": slots,
        "get_vocab_size": config.vocab_size,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
        "get_eos_ids": list(dict.fromkeys([*config.eos_token_id, *known])),
        **({} if bos is None else {"get_bos_id": bos}),
    }


def _slots(config: ModelConfig, context: int | None) -> int:
    longest = config.max_position_embeddings
    if context is None:
        return min(longest, _DEFAULT_CONTEXT)
    if not _SHORTEST <= context <= longest:
        raise UsageError(f"--context is {context}, but this model takes from {_SHORTEST} to {longest:,} tokens")
    return context


def _tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """The model's tokenizer, if it has one. The runner reads as many logits as this has ids."""
    if not any(os.path.lexists(folder / name) for name in ("tokenizer.json", "tokenizer.model")):
        return None
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} ids, but the model only {config.vocab_size:,}"
        )
    return tokenizer


def _program(source: Checkpoint, slots: int, methods: dict[str, Any]) -> tuple[Any, Report]:
    """ExecuTorch's program, still in memory."""
    try:
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import (
            XnnpackDynamicallyQuantizedPartitioner,
            XnnpackPartitioner,
        )
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower
        from torchao.utils import unwrap_tensor_subclass

        from mobilemoe.export.executorch_model import ExportedModel
    except ModuleNotFoundError as missing:
        if (missing.name or "").startswith("mobilemoe"):
            raise
        raise MissingExtraError("exporting to ExecuTorch", "executorch") from None
    weights = Weights(source)
    tell(0, 3, _STAGES)
    model = unwrap_tensor_subclass(ExportedModel(source.config, weights, slots).eval())
    inputs = (torch.zeros((1, 2), dtype=torch.long), torch.zeros(1, dtype=torch.long))
    lengths = ({1: torch.export.Dim("tokens", max=slots)}, None)
    with torch.no_grad():
        exported = torch.export.export(model, inputs, dynamic_shapes=lengths, strict=False)
    tell(1, 3, _STAGES)
    lowered = to_edge_transform_and_lower(
        exported,
        partitioner=[XnnpackDynamicallyQuantizedPartitioner(), XnnpackPartitioner()],
        compile_config=EdgeCompileConfig(_check_ir_validity=False),  # it knows no operators of the namespace llama
        constant_methods=methods,
    )
    tell(2, 3, _STAGES)
    return lowered.to_executorch(ExecutorchBackendConfig(extract_delegate_segments=True)), weights.found.report()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the notes and warnings, meant for its developers, that an export prints by the hundred."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
