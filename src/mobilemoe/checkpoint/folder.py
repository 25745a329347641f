"""A checkpoint folder: config.json beside one safetensors file, or several under an index.

The tensors must be exactly those that the config describes, but BF16 files may be written in other ways: any float
dtype, one tensor per expert, a tied head that is stored again. Legend: E experts, D hidden, F expert width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from mobilemoe.checkpoint import int4
from mobilemoe.checkpoint.container import (
    Array,
    SafetensorsFile,
    Spec,
    TensorInfo,
    shorten,
)
from mobilemoe.checkpoint.draft import DRAFT, open_draft
from mobilemoe.checkpoint.layout import Weight, stored_tensors, weights
from mobilemoe.config import ModelConfig
from mobilemoe.errors import CheckpointError
from mobilemoe.files import read_json, sha256_file

Floats: TypeAlias = npt.NDArray[np.float32]

ENGINE_FILE = "model.mobilemoe"  # what `convert --format engine` writes in place of the weights
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
_FLOATS = ("BF16", "F16", "F32")
_MAX_INDEX_BYTES = 2**24  # as in the native reader
_LISTED = 4  # names in a message before "and N more"
COMPANION_HASH = "sha256:"  # before a JSON file's name: the metadata key of its hash in the safetensors file beside it


class Checkpoint:
    """An open checkpoint whose tensors have been checked against its config by name, dtype and shape.

    `tensors` are those of the files, by stored name; `weights` those of the model, by canonical name.
    """

    def __init__(self, folder: Path, config: ModelConfig, files: Sequence[SafetensorsFile]) -> None:
        self.folder, self.config, self._files = folder, config, tuple(files)
        self._where = {name: file for file in files for name in file.tensors}
        self.tensors: dict[str, TensorInfo] = {name: file.tensors[name] for name, file in self._where.items()}
        # Before the table is built: a false count must not allocate memory.
        if config.num_hidden_layers > len(self.tensors):
            raise CheckpointError(
                f"{self._place} has only {len(self.tensors)} tensors, "
                f"but {CONFIG} says {config.num_hidden_layers} layers"
            )
        self.weights: dict[str, Weight] = weights(config)
        self._per_expert = self._find_per_expert()
        self._check_tensors()

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Opens `folder`; raises ConfigError for its config.json and CheckpointError for everything else."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(f"{folder} is not a folder: give the folder that holds {CONFIG}")
        config = ModelConfig.load(folder)
        with ExitStack() as stack:
            checkpoint = cls(folder, config, open_files(folder, stack))
            stack.pop_all()
        return checkpoint

    @property
    def names(self) -> tuple[str, ...]:
        """Canonical names of the model's weights."""
        return tuple(self.weights)

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return tuple(file.path for file in self._files)

    def array(self, stored_name: str) -> Array:
        """A stored tensor as it is, without a copy (BF16 as uint16)."""
        if stored_name not in self._where:
            raise CheckpointError(f"{self.folder} holds no tensor {shorten(stored_name)}")
        return self._where[stored_name].array(stored_name)

    def weight(self, name: str) -> Floats:
        """The weight of canonical `name`, exactly, as a new fp32 array in logical shape.

        Matrices are [out, in], experts [E, D, 2F] (gate, then up) and [E, F, D], whatever the stored form.
        """
        weight = self.weights.get(name)
        if weight is None:
            raise CheckpointError(f"{self.folder}: the model has no weight {shorten(name)}")
        axis = self.config.expert_group_axis
        if axis is not None and weight.is_quantizable:
            nibbles, scales = (self.array(stored) for stored in weight.int4_names)
            return int4.dequantize_experts(nibbles, scales, axis if weight.storage == "experts" else "out")
        if name in self._per_expert:
            return self._gather_experts(weight)
        return int4.to_float32(self.array(name), self.tensors[name].dtype)

    def verify(self) -> dict[str, bool | None]:
        """For each file, by name: whether it is as it was written; None if it has no hash."""
        results = {file.path.name: file.verify() for file in self._files}
        for file in self._files:
            for key, digest in file.metadata.items():
                name = key.removeprefix(COMPANION_HASH)
                if key != name and name in (CONFIG, INDEX):
                    path = self.folder / name
                    results[name] = results.get(name, True) and path.exists() and sha256_file(path) == digest
        if (draft := open_draft(self.folder, self.config)) is not None:
            results[DRAFT] = draft.verify()
            draft.close()
        return results

    def close(self) -> None:
        """Closes the files; arrays that are still in use stay valid."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _place(self) -> Path:
        """What messages about the tensors as a whole name."""
        return self.files[0] if len(self._files) == 1 else self.folder

    def _find_per_expert(self) -> dict[str, dict[str, Spec]]:
        """The expert weights that this file keeps as one matrix per expert, with the tensors expected for each."""
        found: dict[str, dict[str, Spec]] = {}
        experts = self.config.num_hidden_layers * self.config.num_local_experts
        if self.config.is_quantized or experts > len(
            self.tensors
        ):  # a false count must not allocate memory here either
            return found
        for weight in self.weights.values():
            if weight.storage == "experts" and weight.name not in self.tensors:
                expected = _per_expert_tensors(weight)
                if not expected.keys().isdisjoint(self.tensors):
                    found[weight.name] = expected
        return found

    def _gather_experts(self, weight: Weight) -> Floats:
        w = np.empty(weight.shape, np.float32)
        stored = list(self._per_expert[weight.name])
        for expert, w_IO in enumerate(w):
            each = len(stored) // len(w)
            matrices = stored[expert * each : (expert + 1) * each]
            columns = [int4.to_float32(self.array(name), self.tensors[name].dtype).T for name in matrices]
            np.concatenate(columns, axis=1, out=w_IO)
        return w

    def _check_tensors(self) -> None:
        expected: dict[str, Spec] = {}
        for weight in self.weights.values():
            expected |= self._per_expert.get(weight.name) or stored_tensors(weight, self.config.expert_group_axis)
        tied_head = self._has_tied_head()
        missing = expected.keys() - self.tensors.keys()
        unknown = self.tensors.keys() - expected.keys() - ({"lm_head.weight"} if tied_head else set())
        if missing or unknown:
            raise CheckpointError(
                f"{self._place} is not the {'INT4' if self.config.is_quantized else 'BF16'} checkpoint that its "
                f"{CONFIG} describes: missing tensors: {_list(missing)}; unknown tensors: {_list(unknown)}"
            )
        wrong = {name: spec for name, spec in expected.items() if not self._fits(name, spec)}
        if wrong:
            first = min(wrong)
            info, (dtype, shape) = self.tensors[first], wrong[first]
            raise CheckpointError(
                f"{self._where[first].path}: tensor {shorten(first)} is {info.dtype} {list(info.shape)}, but {CONFIG} "
                f"asks for {dtype} {list(shape)}; wrong tensors in all: {_list(wrong)}"
            )

    def _fits(self, name: str, spec: Spec) -> bool:
        info, (dtype, shape) = self.tensors[name], spec
        allowed = (dtype,) if self.config.is_quantized else _FLOATS
        return info.dtype in allowed and info.shape == shape

    def _has_tied_head(self) -> bool:
        """Whether a tied BF16 model repeats its embedding as a head; CheckpointError if the two differ."""
        head, embedding = self.tensors.get("lm_head.weight"), self.tensors.get("model.embed_tokens.weight")
        if head is None or embedding is None or self.config.is_quantized or not self.config.tie_word_embeddings:
            return False
        same = (head.dtype, head.shape) == (embedding.dtype, embedding.shape)
        head_bytes, embedding_bytes = self.array("lm_head.weight"), self.array("model.embed_tokens.weight")
        if not same or not np.array_equal(head_bytes.view(np.uint8), embedding_bytes.view(np.uint8)):
            raise CheckpointError(
                f"{self._place}: tie_word_embeddings is true, but lm_head.weight differs from "
                f"model.embed_tokens.weight: set it to false in {CONFIG}"
            )
        return True


def open_files(folder: Path, stack: ExitStack) -> list[SafetensorsFile]:
    """The weight files of `folder`, one or those of its index, to be closed by `stack`; CheckpointError if damaged."""
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        if not (folder / WEIGHTS).exists() and (folder / ENGINE_FILE).exists():
            raise CheckpointError(
                f"{folder} holds an engine file ({ENGINE_FILE}), which only the native engine reads: give the folder "
                "with the weights that it was made from"
            )
        return [stack.enter_context(SafetensorsFile(folder / WEIGHTS))]
    names_by_shard = _read_index(folder / INDEX)
    files = [stack.enter_context(SafetensorsFile(folder / shard)) for shard in names_by_shard]
    _check_shards(folder / INDEX, names_by_shard, files)
    return files


def _read_index(path: Path) -> dict[str, set[str]]:
    """Tensor names by shard."""
    weight_map: Any = read_json(path, CheckpointError, _MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{path} holds no weight_map")
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # A shard must be a plain file name: an index must not refer to files outside its folder.
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\\0"):
            raise CheckpointError(f"{path} puts {shorten(name)} into {shorten(str(shard))}, not a file of its folder")
        names_by_shard.setdefault(shard, set()).add(name)
    return names_by_shard


def _check_shards(index: Path, names_by_shard: dict[str, set[str]], files: Sequence[SafetensorsFile]) -> None:
    seen: set[str] = set()
    for file, names in zip(files, names_by_shard.values(), strict=True):
        held = file.tensors.keys()
        if twice := held & seen:
            raise CheckpointError(f"{file.path} repeats tensors of another shard: {_list(twice)}")
        if held != names:
            raise CheckpointError(
                f"{index} does not fit {file.path}: missing there: {_list(names - held)}; "
                f"not in the index: {_list(held - names)}"
            )
        seen |= held


def _per_expert_tensors(weight: Weight) -> dict[str, Spec]:
    """One matrix [out, in] per expert: gate and up apart, or down."""
    experts, inputs, outputs = weight.shape
    stem, kind = weight.name.rsplit(".", 1)
    parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else ("down_proj",)
    shape = (outputs // len(parts), inputs)
    return {f"{stem}.{expert}.{part}.weight": ("BF16", shape) for expert in range(experts) for part in parts}


def _list(names: Iterable[str]) -> str:
    ordered = sorted(names)
    text = ", ".join(shorten(name) for name in ordered[:_LISTED]) or "none"
    return text if len(ordered) <= _LISTED else f"{text} and {len(ordered) - _LISTED} more"
