"""The table of benchmarks, and its tasks over local files: a perfect model scores 1, a wrong one 0, in each of them."""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mobilemoe.errors import UsageError
from mobilemoe.evaluate.tasks import build, lm_tasks
from mobilemoe.evaluate.tasks.build import build_tasks
from mobilemoe.evaluate.tasks.sandbox import run as sandbox
from mobilemoe.evaluate.tasks.suites import BENCHMARKS, SUITES, find_benchmarks

pytest.importorskip("lm_eval")

from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks._yaml_loader import load_yaml

from mobilemoe.evaluate.tasks.lm_tasks import FOLDERS

SUM = {"query": "Question: Which is a sum?", "choices": ["two and two", "seven", "a very long wrong answer"], "gold": 0}
CHOICES = [SUM, {**SUM, "query": "Question: Which is a number?", "gold": 1}]
LETTERED = [
    {
        "query": f"Context: {name} ran.\nQuestion: Who?\nChoices:\nA. {name}\nB. I\nAnswer:",
        "choices": ["A", "B"],
        "gold": 0,
    }
    for name in ("Ann", "Bob")
]
WORDS = [f"{name} fruit" for name in ("red", "blue", "green", "white", "black", "yellow", "pink")]
MBPP = [
    {
        "text": f"Write a function to add {number}.",
        "code": f"def add(x):\r\n  return x + {number}",
        "task_id": task_id,
        "test_setup_code": "",
        "test_list": [f"assert add({at}) == {at + number}" for at in range(3)],
        "challenge_test_list": [],
    }
    for number, task_id in enumerate((2, 3, 4, 11, 510, 600))
]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add(x):\n    """Adds {number}."""\n',
        "entry_point": "add",
        "canonical_solution": f"    return x + {number}\n",
        "test": f"\ndef check(candidate):\n    assert candidate(1) == 1 + {number}\n",
    }
    for number in range(2)
]
FILES = {
    "hellaswag.jsonl": CHOICES,
    "piqa.jsonl": [{"query": f"Question: To {word}?\n", "choices": ["yes it is", "no"], "gold": 1} for word in WORDS],
    "siqa.jsonl": LETTERED,
    "commonsense_qa.jsonl": LETTERED,
    "winogrande.jsonl": [
        {"context_options": ["Ann saw Bob so Ann", "Ann saw Bob so Bob"], "continuation": f"ate {word}.", "gold": gold}
        for gold, word in enumerate(WORDS[:2])
    ],
    "arc_easy.jsonl": CHOICES,
    "arc_challenge.jsonl": CHOICES,
    "openbook_qa.jsonl": CHOICES,
    "boolq.jsonl": [
        {"query": f"Passage: A {word}.\nQuestion: is it sweet?", "choices": ["no", "yes"], "gold": gold}
        for gold, word in enumerate(WORDS[:2])
    ],
    "nq_open.jsonl": [{"question": f"who ate {word}", "answer": [word, "The " + word]} for word in WORDS],
    "triviaqa_sm_sub.jsonl": [
        {"context": f"Question: Who ate {word}?\nAnswer:", "answer": word, "aliases": [f"{word}s", word]}
        for word in WORDS
    ],
    "gsm8k.jsonl": [
        {
            "context": f"How many are {n} and 1000?",
            "chain_of_thought": f"{n} + 1000 = {n + 1000}",
            "answer": f"{n + 1000:,}",
        }
        for n in range(7)
    ],
    "mmlu_stem.jsonl": [
        {"question": f"Is {n}?", "type": subject, "choices": [*"wxyz"], "answer": n % 4}
        for subject in ("astronomy", "machine_learning")
        for n in range(7)
    ],
    "math500.jsonl": [
        {"problem": f"What is {n}+1?", "solution": f"It is $\\boxed{{{n + 1}}}$.", "answer": f"{n + 1}", "level": 2}
        for n in range(2)
    ],
    "humaneval.jsonl": HUMANEVAL,
    "mbpp.jsonl": MBPP,
}
BBH = {"input": "True and False is", "target": "False"}
RIGHT = {
    **{name: [row["gold"] for row in CHOICES] for name in ("hellaswag", "arc_easy", "arc_challenge", "openbookqa")},
    "piqa": [1] * 7,
    "siqa": [0, 0],
    "commonsense_qa": [0, 0],
    "winogrande": [0, 1],
    "boolq": [0, 1],
    "nq_open": [f" the {word.upper()}" for word in WORDS],
    "triviaqa": [f" {word}!" for word in WORDS],
    "gsm8k": [f"So it is\n#### {n + 1000:,}" for n in range(7)],
    "mmlu_stem": [n % 4 for n in range(7)],
    "bbh": ["So the answer is False."],
    "humaneval": [row["canonical_solution"] for row in HUMANEVAL],
    "mbpp": [row["code"] for row in MBPP[3:5]],
}


class Stub(LM):
    """Knows the right answers by their place in the file, and says them, or never."""

    def __init__(self, answers, is_right):
        super().__init__()
        self.answers, self.is_right = answers, is_right

    def loglikelihood(self, requests):
        chosen = [(each.idx == self.answers[each.doc_id]) == self.is_right for each in requests]
        return [(-1.0 if is_chosen else -1000.0, False) for is_chosen in chosen]

    def generate_until(self, requests):
        return [self.answers[each.doc_id] if self.is_right else " 0 raise" for each in requests]

    def loglikelihood_rolling(self, requests):
        raise NotImplementedError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks")
    for name, rows in FILES.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "bbh").mkdir()
    (folder / "bbh" / "boolean_expressions.json").write_text(json.dumps({"canary": "x", "examples": [BBH]}))
    return folder


def built(name, folder, allow_code=True):
    tasks, missing = build_tasks((BENCHMARKS[name],), folder, allow_code)
    assert not missing, missing
    return tasks[name] if isinstance(tasks[name], list) else [tasks[name]]


def prompt(task, place=0, shots=None):
    shots = task.config.num_fewshot if shots is None else shots
    return task.fewshot_context(task.eval_docs[place], shots)


def score(name, tasks, is_right):
    found = evaluator.evaluate(
        lm=Stub(RIGHT[name], is_right),
        task_dict={"tasks": {task.task_name: task for task in tasks}, "groups": {}},
        bootstrap_iters=0,
        log_samples=False,
        confirm_run_unsafe_code=True,
    )
    metric, _, filter_name = BENCHMARKS[name].metric.partition(",")
    keys = [key for key in found["results"][tasks[0].task_name] if key.startswith(f"{metric},{filter_name}")]
    return [found["results"][task.task_name][keys[0]] for task in tasks]


@pytest.mark.parametrize("name", RIGHT)
def test_a_perfect_model_scores_one_and_a_wrong_one_zero(name, folder):
    if BENCHMARKS[name].kind == "code":
        try:
            sandbox.sandbox_strength()
        except sandbox.SandboxError as reason:
            pytest.skip(str(reason))
    tasks = built(name, folder)
    assert set(score(name, tasks, True)) == {1.0}
    assert set(score(name, tasks, False)) == {0.0}


@pytest.mark.skipif(importlib.util.find_spec("latex2sympy2_extended") is None, reason="math-verify is not whole")
def test_math_is_compared_as_mathematics(folder, monkeypatch):
    monkeypatch.setitem(RIGHT, "math500", [f"Clearly $\\boxed{{\\frac{{{2 * n + 2}}}{{2}}}}$" for n in range(2)])
    assert score("math500", built("math500", folder), True) == [1.0]
    assert score("math500", built("math500", folder), False) == [0.0]


def test_every_item_of_a_file_is_asked(folder):
    for name, rows in FILES.items():
        benchmark = {"openbook_qa": "openbookqa", "triviaqa_sm_sub": "triviaqa"}.get(Path(name).stem, Path(name).stem)
        if benchmark not in ("mbpp", "math500"):
            assert sum(len(task.eval_docs) for task in built(benchmark, folder)) == len(rows)
    assert [doc["task_id"] for doc in built("mbpp", folder)[0].eval_docs] == [11, 510], "those are MBPP's test part"


def test_prompts_are_those_that_lm_eval_makes_of_the_upstream_data(folder):
    assert prompt(built("hellaswag", folder)[0]) == "Question: Which is a sum?"
    assert prompt(built("piqa", folder)[0]) == "Question: To red fruit?\nAnswer:"
    assert prompt(built("arc_easy", folder)[0]) == "Question: Which is a sum?\nAnswer:"
    assert prompt(built("boolq", folder)[0]) == "A red fruit.\nQuestion: is it sweet?\nAnswer:"
    assert prompt(built("winogrande", folder)[0]) == ["Ann saw Bob so Ann", "Ann saw Bob so Bob"]
    assert prompt(built("siqa", folder)[0]) == LETTERED[0]["query"]
    assert prompt(built("humaneval", folder)[0]) == HUMANEVAL[0]["prompt"]
    assert prompt(built("triviaqa", folder)[0], shots=0) == "Question: Who ate red fruit??\nAnswer:"
    assert prompt(built("mmlu_stem", folder)[0], shots=0) == (
        "The following are multiple choice questions (with answers) about astronomy.\n\n"
        "Is 0?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )
    asked = built("winogrande", folder)[0]
    doc = asked.eval_docs[0]
    assert [each.args for each in asked.construct_requests(doc, asked.fewshot_context(doc, 0))] == [
        ("Ann saw Bob so Ann", " ate red fruit."),
        ("Ann saw Bob so Bob", " ate red fruit."),
    ]


@pytest.mark.parametrize(
    ("name", "field", "answer"),
    [("gsm8k", "question", "#### "), ("nq_open", "question", "fruit"), ("mmlu_stem", "question", "")],
)
def test_shots_never_come_from_the_item_that_is_asked(name, field, answer, folder):
    for task in built(name, folder):
        for place, doc in enumerate(task.eval_docs):
            text = prompt(task, place)
            assert text.count(doc[field]) == 1
            others = [other for other in task.eval_docs if other[field] != doc[field]]
            assert sum(other[field] in text for other in others) == 5
            assert text.count(answer) >= 5 * bool(answer)


def test_shots_that_a_task_brings_along_stay(folder):
    text = prompt(built("bbh", folder)[0])
    assert text.count("Let's think step by step.") == 4
    assert text.endswith("Q: True and False is\nA: Let's think step by step.\n")
    text = prompt(built("mbpp", folder)[0])
    assert text.count("[DONE]") == 3
    assert [f"return x + {number}" in text for number in range(5)] == [True, True, True, False, False]


def test_code_is_run_only_where_it_is_allowed(folder, monkeypatch):
    code = (BENCHMARKS["humaneval"], BENCHMARKS["mbpp"])
    tasks, missing = build_tasks(code, folder, False)
    assert not tasks
    assert all("--allow-code" in missing[name] for name in ("humaneval", "mbpp"))

    def refuse():
        raise sandbox.SandboxError("no isolation here")

    monkeypatch.setattr(build, "sandbox_strength", refuse)
    assert build_tasks(code, folder, True) == ({}, {"humaneval": "no isolation here", "mbpp": "no isolation here"})


def test_code_never_runs_in_this_process(folder):
    """Not even by a task that lm_eval would build of the same name: its functions are not loaded."""
    task = built("humaneval", folder)[0]
    script = f"    import os; os.environ['ESCAPED'] = '1'; open({str(folder / 'escaped')!r}, 'w')\n    return x\n"
    assert task.process_results(task.eval_docs[0], [script]) == {"pass_at_1": 0.0}
    assert "ESCAPED" not in os.environ
    assert not (folder / "escaped").exists()
    assert "lm_eval.tasks.humaneval.utils" not in sys.modules


def test_what_a_folder_lacks_is_missing_by_name(tmp_path):
    tasks, missing = build_tasks(SUITES["foundation"] + SUITES["advanced"], tmp_path, True)
    assert not tasks
    assert missing.keys() == {each.name for each in SUITES["foundation"] + SUITES["advanced"]}
    for name, file in {"drop": "drop.jsonl", "openbookqa": "openbook_qa.jsonl", "bbh": "bbh/*.json"}.items():
        assert missing[name] == f"{tmp_path} holds no {file}"
    assert missing["ifbench"] == "it is no task of lm_eval 0.4.13"
    assert all("\n" not in reason for reason in missing.values())


def test_a_folder_that_is_none_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no folder of benchmark data"):
        build_tasks(SUITES["quick"], tmp_path / "nowhere", False)


def test_a_limit_takes_the_first_items(folder):
    tasks, _ = build_tasks(
        (replace(BENCHMARKS["gsm8k"], limit=2), replace(BENCHMARKS["piqa"], limit=99)), folder, False
    )
    assert [doc["question"] for doc in tasks["gsm8k"].eval_docs] == [row["context"] for row in FILES["gsm8k.jsonl"][:2]]
    assert len(tasks["piqa"].eval_docs) == 7


def test_without_the_hub_every_benchmark_is_missing_in_one_line():
    script = (
        "import sys\nfrom mobilemoe.evaluate.tasks.build import build_tasks\n"
        "from mobilemoe.evaluate.tasks.suites import SUITES\n"
        "tasks, missing = build_tasks(SUITES['foundation'], None, False)\n"
        "print(len(tasks), *missing.items(), sep='\\n')"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": "/nonexistent"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=300)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0] == "0"
    assert len(lines) == 15
    assert all("the Hub cannot be reached" in line for line in lines[1:])
    assert "Traceback" not in done.stderr


def test_the_revision_of_data_from_the_hub_is_known_by_the_folder_that_they_are_kept_in():
    from mobilemoe.evaluate.tasks.lm_tasks import data_revisions

    def task(path, *folders):
        files = [{"filename": f"/cache/org___{path}/default/0.0.0/{folder}/test.arrow"} for folder in folders]
        splits = {"test": SimpleNamespace(cache_files=files), "in memory": SimpleNamespace(cache_files=[])}
        return SimpleNamespace(dataset=splits, config=SimpleNamespace(dataset_path=f"org/{path}"))

    commit = "0123456789abcdef0123456789abcdef01234567"
    assert data_revisions([task("a", commit), task("a", commit), task("b", "0.0.0")]) == [f"org/a@{commit}"]


def test_the_network_is_tried_once(monkeypatch):
    import huggingface_hub

    seen = []

    def unreachable(benchmark, data_dir):
        seen.append(huggingface_hub.constants.HF_HUB_OFFLINE)
        raise lm_tasks.HubUnreachable("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(lm_tasks, "build_task", unreachable)
    build_tasks(SUITES["quick"], None, False)
    assert seen == [False] + [True] * (len(SUITES["quick"]) - 1)
    assert huggingface_hub.constants.HF_HUB_OFFLINE is False


def test_the_table_says_what_lm_eval_has():
    """Names, versions and metrics of the installed lm_eval are those that the table pins."""
    for benchmark in BENCHMARKS.values():
        if benchmark.task is None:
            continue
        configs = [load_yaml(path, resolve_func=False) for path in sorted((FOLDERS / benchmark.folder).glob("*.yaml"))]
        parts = [each for each in configs if isinstance(each.get("task"), str) and "metric_list" in each]
        members = [each for each in parts if each["task"] == benchmark.task] or [
            each for each in parts if each["task"].startswith(f"{benchmark.task.removesuffix('_stem')}_")
        ]
        assert members, benchmark.name
        for config in members:
            assert config.get("metadata", {}).get("version", 0.0) == benchmark.version, config["task"]
            metrics = {each["metric"] for each in config["metric_list"]}
            assert benchmark.metric.partition(",")[0] in metrics or benchmark.kind == "code"


def test_the_suites_are_those_of_the_paper():
    names = {suite: [each.name for each in SUITES[suite]] for suite in SUITES}
    assert len(names["foundation"]) == 14
    published = {"hellaswag", "piqa", "siqa", "winogrande", "arc_easy", "openbookqa", "boolq"}
    assert {each.name for each in SUITES["foundation"] if each.published} == published
    assert all(each.shots == 0 for each in SUITES["foundation"] if each.published)
    assert names["advanced"] == ["math500", "humaneval", "mbpp", "ifeval", "ifbench", "mmlu_pro", "gpqa"]
    assert all(each.limit for each in SUITES["quick"])
    assert {each.kind for each in SUITES["quick"]} == {"loglikelihood", "generation"}


def test_benchmarks_are_found_by_suite_or_by_name(folder):
    assert find_benchmarks("advanced") == SUITES["advanced"]
    assert find_benchmarks("gsm8k, piqa,gsm8k") == (BENCHMARKS["gsm8k"], BENCHMARKS["piqa"])
    for text in ("", "helaswag", "piqa,,gsm8k", "quick,piqa"):
        with pytest.raises(UsageError, match="there is no suite or benchmark"):
            find_benchmarks(text)


def test_what_is_odd_about_local_data_travels_with_the_benchmark(folder, tmp_path):
    notes = {each.name: each.note for each in find_benchmarks("foundation", folder)}
    assert "not comparable" in notes["siqa"]
    assert "other items" in notes["gsm8k"]
    assert notes["piqa"] == ""
    assert [*notes][4:6] == ["mmlu", "mmlu_stem"], "the part stands beside the whole, under its own name"
    assert "not MMLU's number" in notes["mmlu_stem"]
    assert len(find_benchmarks("foundation", tmp_path)) == 14
    assert find_benchmarks("siqa")[0].note == ""
