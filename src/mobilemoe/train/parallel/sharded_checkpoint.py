"""Checkpoints of several processes, written in the background (torch.distributed.checkpoint).

Every process writes its shards beside the run's checkpoints. When all have, the first process joins them into the same
folder that a single process would write, so any number of processes can resume from it and every command can read it.
All processes must share a file system.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
import torch.futures
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult

from mobilemoe.checkpoint.container import Array
from mobilemoe.errors import TrainError
from mobilemoe.train.checkpointing import Draft, Tensors

TELL = 5.0  # seconds between two sentences on a checkpoint that is waited for
_Place = tuple[
    Path, int, tuple[int, ...], tuple[int, ...]
]  # file and byte, and what it is: offsets in the tensor, sizes


class ShardedSaver:
    """Saves in the background, one checkpoint at a time. All processes create it and call it together."""

    def __init__(self) -> None:
        # A group of its own, so that messages of saving and of training do not mix.
        self._group = dist.new_group(backend="gloo")
        self._pending: Future[Metadata] | None = None
        self._shards: _Shards | None = None

    def save(self, draft: Draft, tensors: Tensors) -> None:
        """Copies the tensors and returns; the folder appears later. Raises TrainError if the last checkpoint failed."""
        self.wait()
        flat = {f"{file}/{name}": tensor for file, of in tensors.items() for name, tensor in of.items()}
        self._shards = _Shards(draft)
        saving = async_save(flat, storage_writer=self._shards, process_group=self._group)
        assert isinstance(saving, Future)
        self._pending = saving

    def wait(self, tell: Callable[[str], None] | None = None) -> None:
        """Waits until the last checkpoint is in place. Raises TrainError if it could not be written.

        `tell` gets a sentence on how far that is, every few seconds.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        assert self._shards is not None
        while tell is not None and not wait([pending], TELL).done:
            tell(self._shards.progress())
        try:
            pending.result()
        except CheckpointException as fault:
            rank, (reason, _) = min(fault.failures.items())
            raise TrainError(f"process {rank} could not write the checkpoint: {reason}") from None


class _Shards(StorageWriter):
    """Writes one file per process: parts of tensors in fp32, one after the other."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        # `remove_leftovers` knows this name, so that the folder of a killed run is removed at the next start. It must
        # not be the name of a half-written checkpoint: those are cleared while the shards are still being read.
        self._folder = draft.folder.with_name(f".{draft.folder.name}-shards.part")
        self._bytes = self._joined = 0  # of the whole checkpoint, known in the first process once it joins the shards

    def progress(self) -> str:
        """How much of the checkpoint is in place, as a sentence."""
        if not self._bytes:
            return f"step {self._draft.step}: each process writes its part of the checkpoint"
        return (
            f"step {self._draft.step}: {self._joined / 1e9:.1f} of {self._bytes / 1e9:.1f} GB of the checkpoint written"
        )

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return [replace(plan, storage_data=self._folder / f"{rank}.parts") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        arrays = (_array(planner.resolve_data(item)) for item in plan.items)
        places = _write_arrays(plan.storage_data, arrays)
        results = [
            WriteResult(
                item.index, 0, (plan.storage_data, place, tuple(_chunk(item).offsets), tuple(_chunk(item).sizes))
            )
            for item, place in zip(plan.items, places, strict=True)
        ]
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Joins the shards; called in the first process after all have written."""
        shapes: dict[str, dict[str, tuple[int, ...]]] = defaultdict(dict)
        for key, of in metadata.state_dict_metadata.items():
            assert isinstance(of, TensorStorageMetadata)
            file, _, name = key.partition("/")
            shapes[file][name] = tuple(of.size)
        parts: dict[str, list[_Place]] = defaultdict(list)
        for result in (result for of_one in results for result in of_one):
            parts[result.index.fqn].append(result.storage_data)
        self._bytes = sum(4 * math.prod(shape) for of in shapes.values() for shape in of.values())

        def produce(file: str, name: str) -> Array:
            whole = np.empty(shapes[file][name], np.float32)
            for path, place, starts, sizes in parts[f"{file}/{name}"]:
                part = whole[tuple(slice(at, at + length) for at, length in zip(starts, sizes, strict=True))]
                part[...] = np.memmap(path, np.float32, "r", place, sizes) if part.size else part
            self._joined += whole.nbytes
            return whole

        self._draft.write(shapes, produce)
        shutil.rmtree(self._folder)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _write_arrays(path: Path, arrays: Iterable[Array]) -> list[int]:
    """Writes the arrays one after the other, and returns where each begins.

    Nothing is hashed or synced: what is read again at once, and removed, need not survive a power cut.
    """
    places = []
    with path.open("wb") as handle:
        for array in arrays:
            places.append(handle.tell())
            handle.write(array.data)
    return places


def _array(tensor: object) -> Array:
    assert isinstance(tensor, Tensor)
    array: Array = tensor.detach().float().contiguous().numpy()
    return array


def _chunk(item: WriteItem) -> ChunkStorageMetadata:
    assert item.tensor_data is not None
    return item.tensor_data.chunk
