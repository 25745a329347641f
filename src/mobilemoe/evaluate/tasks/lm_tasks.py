"""Tasks of lm_eval: from the Hub as they are, or with the items of a local folder in their place."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import huggingface_hub
import lm_eval.tasks
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from mobilemoe.evaluate.tasks import local
from mobilemoe.evaluate.tasks.code import CODE
from mobilemoe.evaluate.tasks.local import NO_HUB, Unavailable

if TYPE_CHECKING:
    from mobilemoe.evaluate.tasks.suites import Benchmark

Config = dict[str, Any]
_COMMIT = re.compile("[0-9a-f]{40}")
FOLDERS = Path(lm_eval.tasks.__file__).parent


class HubUnreachable(Unavailable):
    """No network, so only what the Hub's cache has is available."""


@contextmanager
def cache_alone() -> Iterator[None]:
    """A context in which the Hub's clients do not use the network, as with HF_HUB_OFFLINE=1."""
    before = datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, huggingface_hub.constants.HF_HUB_OFFLINE = before


class LocalTask(ConfigurableTask):  # type: ignore[misc]
    """A task whose items are rows in memory, by split."""

    def __init__(self, config: Config, splits: local.Splits) -> None:
        self._splits = splits
        super().__init__(config=config)

    def download(self, dataset_kwargs: Any = None, **kwargs: Any) -> None:
        """Takes the rows that were given, where lm_eval would download them from the Hub."""
        self.dataset = {name: datasets.Dataset.from_list(rows) for name, rows in self._splits.items()}


def build_task(benchmark: Benchmark, data_dir: Path | None) -> Any:
    """lm_eval's task for `benchmark`, or a list of them for a group; each its first `limit` items if there is a limit.

    Raises Unavailable for missing data, DataError for a damaged file of `data_dir`.
    """
    # An index of one folder: that of all of lm_eval's tasks takes ten seconds.
    manager = TaskManager(include_defaults=False, include_path=str(FOLDERS / benchmark.folder))
    try:
        tasks = _hub_tasks(benchmark, manager) if data_dir is None else _local_tasks(benchmark, manager, data_dir)
    except ImportError as fault:
        raise Unavailable(f"a package of its own is missing ({_first_line(fault.__cause__ or fault)})") from None
    for task in tasks:
        task.set_config("num_fewshot", benchmark.shots)
        if benchmark.limit is not None:
            _limit(task, benchmark.limit)
    return tasks if len(tasks) > 1 else tasks[0]


def data_revisions(tasks: Iterable[Any]) -> list[str]:
    """The data sets of the Hub that `tasks` were built from, each as "ORG/NAME@COMMIT".

    The commit is in the name of the folder that the Hub's client keeps the data in.
    """
    found = set()
    for task in tasks:
        for split in task.dataset.values():
            folders = {Path(file["filename"]).parent.name for file in getattr(split, "cache_files", ())}
            found |= {f"{task.config.dataset_path}@{name}" for name in folders if _COMMIT.fullmatch(name)}
    return sorted(found)


def _hub_tasks(benchmark: Benchmark, manager: TaskManager) -> list[Any]:
    try:
        if benchmark.kind == "code":
            return [ConfigurableTask(config=_config(benchmark, manager, str(benchmark.task)))]
        return [*manager.load(benchmark.task)["tasks"].values()]
    except ImportError:
        raise
    except ConnectionError as fault:
        raise HubUnreachable(f"{NO_HUB} ({_first_line(fault)})") from None
    except Exception as fault:  # the Hub's clients raise of every kind: gated, gone, damaged
        raise Unavailable(f"the Hub did not give its data ({type(fault).__name__}: {_first_line(fault)})") from None


def _local_tasks(benchmark: Benchmark, manager: TaskManager, data_dir: Path) -> list[Any]:
    tasks = []
    for part, splits in local.read_items(benchmark.name, data_dir).items():
        try:
            config = _config(benchmark, manager, part or str(benchmark.task))
        except Unavailable as fault:
            raise Unavailable(f"{fault}, of which {data_dir} holds items" if part else str(fault)) from None
        brings_shots = bool({"samples", "process_docs"} & (config.get("fewshot_config") or {}).keys())
        config |= {"dataset_path": data_dir.name, "dataset_name": None, "dataset_kwargs": None, "test_split": "test"}
        config |= {"training_split": None, "validation_split": None, "num_fewshot": benchmark.shots}
        if benchmark.shots and not brings_shots:
            config |= {"fewshot_split": "test", "fewshot_config": {"sampler": "first_n"}}
        try:
            task = LocalTask(config | local.config_of(benchmark.name), splits)
        except ImportError:
            raise
        except Exception as fault:  # the task's own code, which expects upstream's data
            raise Unavailable(f"lm_eval makes no task of it ({type(fault).__name__}: {_first_line(fault)})") from None
        _check_shots(task, benchmark.shots)
        tasks.append(task)
    return tasks


def _check_shots(task: LocalTask, shots: int) -> None:
    """Raises Unavailable if an item has too few others as its shots, not counting those that are equal to it."""
    if shots == 0:
        return
    copies = Counter(map(_key, task.sampler.df))
    others = copies.total() - max(copies[_key(doc)] for doc in task.eval_docs)
    if others < shots:
        raise Unavailable(f"{task.config.task} needs {shots} shots for each item, but has only {others} other items")


def _key(doc: Mapping[str, Any]) -> str:
    return json.dumps(doc, sort_keys=True)


def _config(benchmark: Benchmark, manager: TaskManager, task: str) -> Config:
    """The task's own config; functions that it names are left out where they would run code in this process."""
    entry = manager.task_index.get(task)
    if entry is None:
        raise Unavailable(f"lm_eval has no task {task}")
    config: Config = load_yaml(entry.yaml_path, resolve_func=benchmark.kind != "code")
    own = CODE.get(benchmark.name, {})
    return {name: value for name, value in (config | own).items() if name not in ("tag", "group")}


def _limit(task: Any, limit: int) -> None:
    split = task.config.test_split or task.config.validation_split
    docs = task.dataset[split]
    task.dataset = {**task.dataset, split: docs.select(range(min(limit, len(docs))))}


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip() or "no reason given").split("\n")[0][:200]
