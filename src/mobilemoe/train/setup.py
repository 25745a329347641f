"""Sets up what a recipe describes: device, tokenizer, model, optimizer, data and validation."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mobilemoe.chat import ChatTemplate, Part, chat_parts
from mobilemoe.checkpoint import Checkpoint
from mobilemoe.checkpoint.companions import TOKENIZER_FILES
from mobilemoe.checkpoint.run_folder import newest_model
from mobilemoe.config import ModelConfig
from mobilemoe.data.encoding import open_tokenizer, writes_chats
from mobilemoe.data.heldout import read_held_out_text
from mobilemoe.data.loader import PackedLoader
from mobilemoe.data.mixture import build_mixture
from mobilemoe.data.prefetch import Prefetcher
from mobilemoe.errors import ConfigError, TokenizerError
from mobilemoe.hub import find_model
from mobilemoe.model import MobileMoE
from mobilemoe.tokenizer import Tokenizer
from mobilemoe.train import draft, lora, qat
from mobilemoe.train.device import DTYPES, set_threads
from mobilemoe.train.estimate import architecture
from mobilemoe.train.optimizer import make_optimizer
from mobilemoe.train.parallel.distributed import World, shard
from mobilemoe.train.recipe import Recipe, TrainTable
from mobilemoe.train.validation import Validation


@dataclass(frozen=True)
class Setup:
    """What the loop needs to train; `tokenizer_files` and `template` are copied into every checkpoint.

    `notes` are sentences on parts of the recipe that the data do not allow.
    """

    model: MobileMoE
    optimizer: torch.optim.Optimizer
    teacher: qat.Teacher | None
    domains: tuple[str, ...]
    loader: Prefetcher
    tokenizer_files: list[Path]
    template: ChatTemplate | None  # None: the tokenizer has none, and lacks the control tokens of ours
    validation: Validation | None
    notes: tuple[str, ...]


def set_up(recipe: Recipe, world: World) -> Setup:
    """Sets up everything that `recipe`, with its precision settled, describes. Raises any MobileMoEError."""
    train = recipe.train
    _configure_torch(train, world.device)
    folder = find_model(recipe.tokenizer.path, weights=False)
    tokenizer, template = open_tokenizer(folder)
    model = build_model(recipe, tokenizer)
    if recipe.data.train_on == "assistant" and world.is_first:
        _warn_of_endless_answers(tokenizer, template, {*model.config.eos_token_id, *tokenizer.stop_ids})
    prepare_blocks(model, train, world.device)
    shard(model, world, recipe)  # before it goes to the device, so that no device holds all of it
    model.to(world.device)
    loader = _loader(recipe, tokenizer, template)
    if recipe.draft is not None:
        draft.choose_shortlist(model, _token_counts(_loader(recipe, tokenizer, template), model.config.vocab_size))
    validation, notes = _validation(recipe, tokenizer, template)
    return Setup(
        model=model,
        optimizer=make_optimizer(model, train),
        teacher=_teacher(recipe, model, world),
        domains=loader.domains,
        loader=Prefetcher(loader),
        tokenizer_files=[folder / name for name in TOKENIZER_FILES if (folder / name).is_file()],
        template=template if writes_chats(tokenizer, template) else None,
        validation=validation,
        notes=notes,
    )


def _loader(recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate) -> PackedLoader:
    train, mixture = recipe.train, build_mixture(recipe.data, Path.cwd())
    rows = {"batch_size": train.batch_size, "sequence_length": train.sequence_length}
    return PackedLoader(mixture, tokenizer, template, **rows)


def _token_counts(loader: PackedLoader, vocab_size: int) -> Tensor:
    """How often each token occurs at the beginning of the training text, [V]."""
    counts_V, counted = np.zeros(vocab_size, np.int64), 0
    while counted < draft.COUNTED:
        tokens_BT = next(loader).tokens_BT
        counts_V += np.bincount(tokens_BT.ravel(), minlength=vocab_size)
        counted += tokens_BT.size
    return torch.from_numpy(counts_V)


def _warn_of_endless_answers(tokenizer: Tokenizer, template: ChatTemplate, stop_ids: set[int]) -> None:
    """Says on standard error where no answer ends with a token at which writing stops: none is learnt to end then."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        parts = chat_parts(tokenizer.special_pattern, template, messages)
    except TokenizerError:  # said of the first conversation, if there is one
        return
    *_, last = [Part("", False, ()), *(part for part in parts if part.taught)]
    if not (last.special and stop_ids.intersection(tokenizer.encode(last.text, special=True))):
        print(
            "mobilemoe: warning: the chat template ends no answer with a control token at which writing stops: a model "
            "that learns conversations in it will not learn to end its answers",
            file=sys.stderr,
        )


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The architecture: a preset with the tokenizer's control ids and the recipe's changes, or that of `model.init`.

    Raises ConfigError for a change of an unknown field, and if tokenizer or sequence length do not fit the model.
    """
    config = architecture(recipe.model)
    if recipe.model.init is not None:
        config = dataclasses.replace(config, expert_group_axis=None)
    else:
        config = dataclasses.replace(config, **_control_ids(recipe, tokenizer))
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(f"the tokenizer has {tokenizer.vocab_size} ids, but vocab_size is only {config.vocab_size}")
    if recipe.train.sequence_length > config.max_position_embeddings:
        raise ConfigError(
            f"train.sequence_length is {recipe.train.sequence_length}, "
            f"but the model's context is {config.max_position_embeddings}"
        )
    return config


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> MobileMoE:
    """The model on the CPU, in training mode: new weights from the seed, or those of `model.init`."""
    train = recipe.train
    model = MobileMoE(model_config(recipe, tokenizer))
    if recipe.model.init is not None:
        with Checkpoint.open(newest_model(find_model(recipe.model.init))) as saved:
            model.load_weights(saved.weight)
    else:
        model.initialize(train.seed)
    for layer in model.moe_layers():
        layer.experts.capacity_factor = train.capacity_factor
    if train.weights == "bf16":
        for (
            parameter
        ) in model.parameters():  # but not the selection bias, a buffer: bf16 would round its steps of 1e-3 away
            parameter.data = parameter.data.bfloat16()
    if recipe.lora is not None:  # after the cast, so that adapters of bf16 weights are in fp32
        lora.attach(model, recipe.lora, train.seed)
    if recipe.qat is not None:
        qat.prepare(model, recipe.qat)
    if recipe.draft is not None:
        draft.attach(model, recipe.draft, train.seed)
    return model.train()


def prepare_blocks(model: MobileMoE, train: TrainTable, device: torch.device) -> None:
    """Applies activation checkpointing and compilation block by block, so that equal blocks are compiled once."""
    if train.activation_checkpointing:
        for block in model.model.layers:
            _recompute(block)
    if train.compile or (train.compile is None and device.type == "cuda"):
        for part in (*model.model.layers, model.model.norm):
            # Not `part.compile()`, which compiles the hooks of a block too: those of FSDP break the code in pieces.
            part.forward = torch.compile(part.forward)


def _recompute(block: nn.Module) -> None:
    """Makes the block keep only its inputs and compute its activations again in the backward pass."""
    forward: Callable[..., Any] = block.forward

    def checkpointed(*inputs: Any) -> Any:  # a plain function, which torch.compile can trace
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=False)

    block.forward = checkpointed


def _control_ids(recipe: Recipe, tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids of the tokenizer's control tokens, except those that the recipe sets."""
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.stop_ids,
        "eot_token_id": tokenizer.eot_id,
        "header_start_token_id": tokenizer.header_start_id,
        "header_end_token_id": tokenizer.header_end_id,
    }
    return {name: value for name, value in ids.items() if name not in recipe.model.changes}


def _teacher(recipe: Recipe, student: MobileMoE, world: World) -> qat.Teacher | None:
    if recipe.qat is None or recipe.qat.distill_from is None:
        return None
    teacher = qat.Teacher(recipe.qat.distill_from, student, world.device, DTYPES[recipe.train.precision])
    prepare_blocks(teacher.model, recipe.train, world.device)
    return teacher


def _validation(
    recipe: Recipe, tokenizer: Tokenizer, template: ChatTemplate
) -> tuple[Validation | None, tuple[str, ...]]:
    """What the run is validated with, or None, and notes on what cannot be validated."""
    train, data = recipe.train, recipe.data
    if train.validate_every == 0:
        return None, ()
    text = read_held_out_text(
        data, Path.cwd(), tokenizer, template, length=train.sequence_length, tokens=train.validate_tokens
    )
    held_out = f"data.holdout {data.holdout:g} holds out no text"
    if text is None:
        return None, (f"the run is not validated: {held_out} of any source (prepared shards have none)",)
    if text.missing:
        return Validation(text, tokenizer), (f"not validated on {', '.join(text.missing)}: {held_out} of them",)
    return Validation(text, tokenizer), ()


def _configure_torch(train: TrainTable, device: torch.device) -> None:
    set_threads(train)
    if train.deterministic and device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts, which is later
        torch.use_deterministic_algorithms(True)
