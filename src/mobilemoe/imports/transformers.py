"""A checkpoint of transformers' Glm4Moe, dots1, OLMoE or Qwen3-MoE as a checkpoint folder of ours, the same function.

Its matrices may be packed as INT4 by compressed-tensors or MLX.

Legend: E experts, O outputs, I inputs, F expert width.
"""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import Checkpoint, Format, Report, Weight, compare, weights
from mobilemoe.checkpoint.container import Array, shorten
from mobilemoe.checkpoint.folder import open_files
from mobilemoe.checkpoint.writing import encoder, stored_config, write_folder
from mobilemoe.config import GroupAxis, ModelConfig
from mobilemoe.errors import CheckpointError
from mobilemoe.export.stock import output_rows, stock_name
from mobilemoe.files import refuse_existing
from mobilemoe.imports.int4_search import find_int4
from mobilemoe.imports.stored_tensors import FLOATS, Floats, StoredTensors
from mobilemoe.imports.transformers_config import read_config, read_packing
from mobilemoe.tokenizer import Tokenizer

Int4 = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float16]]
_QK_NORMS = ("q_norm.weight", "k_norm.weight")


def convert_transformers(folder: Path, out: Path, *, format: Format, group_axis: GroupAxis = "in") -> Report:
    """Writes the checkpoint in `folder` as the new folder `out`, its tokenizer beside it; reports the error.

    BF16 weights become BF16 exactly, and packed ones INT4 bit for bit; those of FP16 or FP32 are rounded. ConfigError
    names the key of what is not computed here, CheckpointError the tensor that is missing, unknown or of another shape;
    TokenizerError.
    """
    refuse_existing(out, CheckpointError)
    config = _with_ids(read_config(folder), folder)
    with ExitStack() as stack:
        source = _Source(folder, config, StoredTensors(open_files(folder, stack), read_packing(folder)))
        config = stored_config(source.reduced(), format, group_axis)
        encode = encoder(config, source.weight)
        kept = {
            name: (weight.name, at)
            for weight in weights(config).values()
            if weight.lies_along_inputs(config.expert_group_axis)
            for at, name in enumerate(weight.int4_names)
        }

        def produce(stored: str) -> Array:
            name, at = kept.get(stored, ("", 0))
            as_stored = source.int4(name) if name else None
            return encode(stored) if as_stored is None else as_stored[at]

        write_folder(out, config, produce, beside=folder)
        with Checkpoint.open(out) as written:
            return compare(source.weight, written)


def _with_ids(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config with the control ids that transformers keeps in the tokenizer only."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return config
    tokenizer = Tokenizer.load(folder)
    return dataclasses.replace(
        config,
        bos_token_id=tokenizer.bos_id if config.bos_token_id is None else config.bos_token_id,
        eot_token_id=tokenizer.eot_id,
        header_start_token_id=tokenizer.header_start_id,
        header_end_token_id=tokenizer.header_end_id,
    )


class _Source:
    """The weights of a checkpoint of transformers by our canonical names, its tensors checked against `config`."""

    def __init__(self, folder: Path, config: ModelConfig, stored: StoredTensors) -> None:
        self._folder, self._config, self._stored = folder, config, stored
        # Before any table is built: a false count must not allocate memory.
        if config.num_hidden_layers > len(stored.names):
            raise CheckpointError(
                f"{folder} has only {len(stored.names)} tensors, "
                f"but num_hidden_layers is {config.num_hidden_layers} in its config.json"
            )
        self._weights = weights(config)
        rest = set(stored.names)
        for weight in self._weights.values():
            rest -= self._check(weight)
        if config.tie_word_embeddings and "lm_head.weight" in rest:
            self._check_tied_head()
            rest.discard("lm_head.weight")
        rest = {name for name in rest if not self._is_of_later_layer(name)}
        if rest:
            raise CheckpointError(
                f"{folder} holds a tensor that its config.json does not ask for: {shorten(min(rest))}"
            )

    def reduced(self) -> ModelConfig:
        """The config without norms of ones, shared experts of zeros and a head that is the embedding."""
        config = self._config
        norms = [name for name in self._weights if name.endswith(_QK_NORMS)]
        if config.qk_norm == "head_weight" and all((self.weight(name) == 1).all() for name in norms):
            config = dataclasses.replace(config, qk_norm="head")
        shared = [weight.name for weight in self._weights.values() if weight.kind == "shared"]
        if not any(self.weight(name).any() for name in shared):
            config = dataclasses.replace(config, intermediate_size_mlp=0)
        if not config.tie_word_embeddings and self._head_is_embedding():
            config = dataclasses.replace(config, tie_word_embeddings=True)
        return config

    def weight(self, name: str) -> Floats:
        """The weight in our order and logical shape: matrices [O, I], experts [E, I, O]."""
        weight = self._weights[name]
        if weight.storage == "experts":
            return self._experts(weight)
        w = np.empty(weight.shape, np.float32)
        w[output_rows(self._config, name)] = self._stored.floats(stock_name(name))
        return w

    def int4(self, name: str) -> Int4 | None:
        """Nibbles and scales in our order, matrices [O, I/2] and experts [E, O, I/2]; None if it is not INT4 here."""
        weight = self._weights[name]
        if weight.storage == "experts":
            names = [self._parts(weight, expert) for expert in range(weight.shape[0])]
            if not all(self._stored.is_packed(part) for parts in names for part in parts):
                return None
            experts = [[self._stored.int4(part) for part in parts] for parts in names]
            return (
                np.stack([np.concatenate([nibbles for nibbles, _ in parts]) for parts in experts]),
                np.stack([np.concatenate([scales for _, scales in parts]) for parts in experts]),
            )
        theirs, found = stock_name(name), None
        if self._stored.is_packed(theirs):
            found = self._stored.int4(theirs)
        elif self._stored.packing == "compressed-tensors" and self._stored.dtype(theirs) == "F16":
            found = find_int4(self._stored.floats(theirs))  # the embedding, which `export` had to unpack
        if found is None:
            return None
        rows = output_rows(self._config, name)
        nibbles, scales = np.empty_like(found[0]), np.empty_like(found[1])
        nibbles[rows], scales[rows] = found
        return nibbles, scales

    def _experts(self, weight: Weight) -> Floats:
        if (fused := stock_name(weight.name)) in self._stored.names:
            return self._stored.floats(fused).swapaxes(1, 2)
        w_EIO = np.empty(weight.shape, np.float32)
        for expert, w_IO in enumerate(w_EIO):
            parts = [self._stored.floats(name).T for name in self._parts(weight, expert)]
            np.concatenate(parts, axis=1, out=w_IO)
        return w_EIO

    def _parts(self, weight: Weight, expert: int) -> list[str]:
        """Names of the matrices of one expert: gate and up, or down."""
        stem, kind = stock_name(weight.name).rsplit(".", 1)
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
        return [f"{stem}.{expert}.{part}.weight" for part in parts]

    def _check(self, weight: Weight) -> set[str]:
        """Names of the tensors that hold `weight`, each checked."""
        theirs = stock_name(weight.name)
        if weight.storage != "experts" or theirs in self._stored.names:
            shape = weight.shape
            expected = {theirs: (shape[0], shape[2], shape[1]) if weight.storage == "experts" else shape}
        else:
            experts, inputs, outputs = weight.shape
            expected = {}
            for expert in range(experts):
                names = self._parts(weight, expert)
                if names[0] not in self._stored.names:
                    raise CheckpointError(f"{self._folder} holds neither tensor {theirs} nor {names[0]}")
                expected |= dict.fromkeys(names, (outputs // len(names), inputs))
        for name, wanted in expected.items():
            if name not in self._stored.names:
                raise CheckpointError(f"{self._folder} holds no tensor {name}")
            shape, dtype = self._stored.shape(name), self._stored.dtype(name)
            if shape != wanted or dtype not in (*FLOATS, "INT4"):
                raise CheckpointError(
                    f"{self._stored.path(name)}: tensor {name} is {dtype} {list(shape)}, "
                    f"but {list(wanted)} in {', '.join(FLOATS[:-1])} or {FLOATS[-1]} is asked for"
                )
        return set(expected)

    def _head_is_embedding(self) -> bool:
        head, embedding = (self._stored.floats(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
        return np.array_equal(head, embedding)

    def _check_tied_head(self) -> None:
        if not self._head_is_embedding():
            raise CheckpointError(
                f"{self._folder}: tie_word_embeddings is true, but lm_head.weight differs from "
                "model.embed_tokens.weight: set it to false in config.json"
            )

    def _is_of_later_layer(self, name: str) -> bool:
        """Whether a tensor belongs to the modules of multi-token prediction, which stand behind the layers."""
        parts = name.split(".")
        is_layer = parts[:2] == ["model", "layers"] and len(parts) > 2 and parts[2].isdecimal()
        return is_layer and int(parts[2][:9]) >= self._config.num_hidden_layers
