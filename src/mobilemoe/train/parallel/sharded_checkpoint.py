"""Checkpoints of several processes, written in the background (torch.distributed.checkpoint).

Every process writes its shards beside the run's checkpoints. When all have, the first process joins them into the same
folder that a single process would write, so any number of processes can resume from it and every command can read it.
All processes must share a file system.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.futures
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult

from mobilemoe.checkpoint import SafetensorsFile, write_safetensors
from mobilemoe.checkpoint.container import Array
from mobilemoe.errors import TrainError
from mobilemoe.train.checkpointing import Draft, Tensors


class ShardedSaver:
    """Saves in the background, one checkpoint at a time. All processes create it and call it together."""

    def __init__(self) -> None:
        # A group of its own, so that messages of saving and of training do not mix.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[Metadata] | None = None

    def save(self, draft: Draft, tensors: Tensors) -> None:
        """Copies the tensors and returns; the folder appears later. Raises TrainError if the last checkpoint failed."""
        self.wait()
        flat = {f"{file}/{name}": tensor for file, of in tensors.items() for name, tensor in of.items()}
        saving = async_save(flat, storage_writer=_Shards(draft), process_group=self._group)
        assert isinstance(saving, Future)
        self._pending = saving

    def wait(self) -> None:
        """Waits until the last checkpoint is in place. Raises TrainError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except CheckpointException as fault:
            rank, (reason, _) = min(fault.failures.items())
            raise TrainError(f"process {rank} could not write the checkpoint: {reason}") from None


class _Shards(StorageWriter):
    """Writes one safetensors file per process. Each part of a tensor is named by the tensor and its first element."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        # `remove_leftovers` knows this name, so that the folder of a killed run is removed at the next start. It must
        # not be the name of a half-written checkpoint: those are cleared while the shards are still being read.
        self._folder = draft.folder.with_name(f".{draft.folder.name}-shards.part")

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=self._folder / f"{rank}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        items = {_part_name(item): item for item in plan.items}
        specs = {name: ("F32", tuple(_sizes(item))) for name, item in items.items()}

        def produce(name: str) -> Array:
            tensor = planner.resolve_data(items[name])
            assert isinstance(tensor, Tensor)
            array: Array = tensor.detach().float().numpy()
            return array

        path: Path = plan.storage_data
        write_safetensors(path, specs, produce)
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result([WriteResult(item.index, 0, (path, name)) for name, item in items.items()])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Joins the shards; called in the first process after all have written."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for key, of in metadata.state_dict_metadata.items():
            assert isinstance(of, TensorStorageMetadata)
            file, _, name = key.partition("/")
            shapes[file][name] = tuple(of.size)
        parts: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for result in (result for of_one in results for result in of_one):
            parts[result.index.fqn].append(result.storage_data)
        with ExitStack() as stack:
            files = {path: stack.enter_context(SafetensorsFile(path)) for path in self._folder.iterdir()}

            def produce(file: str, name: str) -> Array:
                whole = np.empty(shapes[file][name], np.float32)
                for path, part_name in parts[f"{file}/{name}"]:
                    part = files[path].array(part_name)
                    starts = map(int, part_name.rpartition("@")[2].split(",")) if part.ndim else ()
                    whole[tuple(slice(at, at + length) for at, length in zip(starts, part.shape, strict=True))] = part
                return whole

            self._draft.write(shapes, produce)
        shutil.rmtree(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _part_name(item: WriteItem) -> str:
    assert item.tensor_data is not None
    return f"{item.index.fqn}@{','.join(map(str, item.tensor_data.chunk.offsets))}"


def _sizes(item: WriteItem) -> Sequence[int]:
    assert item.tensor_data is not None
    return item.tensor_data.chunk.sizes
