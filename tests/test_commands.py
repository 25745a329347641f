"""Every command that a document shows is run as it stands, or stands below with what is run in its place, or why not.

A command's exit status and errors are checked here; what it computes, the tests of its verb check.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.request

import pytest

from mobilemoe.evaluate.results.results import write_results
from places import HELDOUT, RECIPES, ROOT
from report_results import FOURTEEN, results

DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("examples/*/README.md"))
SHORT = "--set train.steps=1 --set train.batch_size=1 --set train.sequence_length=64"
EXAMPLE_CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Good day!"}]}

# What is run in place of a command: the same with less work.
CHANGED = {
    "mobilemoe train recipes/finetune.toml --set data.path=my.jsonl": (
        f"mobilemoe train recipes/finetune.toml --set data.path=my.jsonl {SHORT}"
    ),
    "mobilemoe fit runs/tiny-sweep/runs.csv --law paper-E --out law.json --report fit.html": (
        "mobilemoe fit runs/tiny-sweep/runs.csv --law paper-E --out law-of-few.json --report fit.html --bootstraps 20"
    ),
    "mobilemoe fit recipes/sweep/runs.csv --law paper-E --only '*-dense-*' --only '*-e8g8s0-*' --bootstraps 400 "
    "--compare --report fit.html": (
        "mobilemoe fit recipes/sweep/runs.csv --law paper-E --only '*-dense-*' --only '*-e8g8s0-*' --bootstraps 20 "
        "--report fit.html"
    ),
}
# What `make test-slow` runs.
SLOW = {
    "mobilemoe sweep recipes/sweep/tiny.toml --processes 2",
    "mobilemoe fit runs/tiny-sweep/runs.csv --law paper-E --out law.json --report fit.html",
    "python recipes/sweep/third/forecast.py recipes/sweep/fourth/runs.csv",
    "python recipes/sweep/fourth/findings.py",
    "mobilemoe fit recipes/sweep/runs.csv --law paper-E --only '*-dense-t[!1]*' --only '*-e8g8s0-t[!1]*' "
    "--bootstraps 400 --compare",
}
_WHEELS = "needs a wheel: tests/test_wheels.py installs and runs them"
_CLONES = "needs other authors' repositories"
_DATA_SETS = "needs data sets of the Hub, and minutes to hours: tests/evaluate has small ones"
# Why a command is not run, by the command or its beginning, which ends in "*".
NOT_RUN = {
    "pip install *": _WHEELS,
    "pipx run *": _WHEELS,
    "make *": "a target of the Makefile: each is run by hand or by CI, some of them run these tests",
    ".venv/bin/python -m pytest *": "the tests themselves",
    "build/native/mobilemoe-tests attention": "needs the engine's own tests, which `make test` runs",
    "mobilemoe train --pipeline nano --set data.path=DIR": "an hour on a GPU: tests/train runs small pipelines",
    "mobilemoe train recipes/draft.toml --set data.path=DIR": "minutes on a GPU: tests/train trains small heads",
    "mobilemoe quantize runs/draft my-model": "needs the run of the line before it",
    "mobilemoe quantize runs/nano-qat nano-int4": "needs the run of the line before it",
    "mobilemoe eval nano --suite *": _DATA_SETS,
    "mobilemoe eval A B --against PARENT --suite quick --text FILE.jsonl": _DATA_SETS,
    "mobilemoe export nano --to executorch --out nano-executorch": "needs ExecuTorch: `make test-doors` exports it",
    "mobilemoe convert OLMoE-1B-7B-0924 olmoe --format int4": "needs 14 GB of the Hub: tests/imports has a small one",
    "python benchmarks/serve_load.py *": "needs a server, and minutes: tests/serve/test_load.py asks it less",
    "python recipes/household/write.py *": "needs a model of the Hub: tests/recipes writes with a random one",
    "python benchmarks/public_runs.py FOLDER_OF_CLONES tables": _CLONES,
    "mobilemoe fit tables/*": _CLONES,
    "mobilemoe fit analyzing-chinchilla/*": _CLONES,
    "mobilemoe fit steplaw/*": _CLONES,
    "cd examples/android": "for the line behind it",
    "cmake -S ../.. -B build/android *": "needs Android's NDK: tests/examples compiles with a sysroot",
    "cmake --build build/android *": "the same",
    "gradle *": "needs Android's SDK: tests/examples checks the sources",
    "adb *": "needs a phone",
    "examples/ios/build-xcframework.sh": "needs a Mac: tests/examples checks the sources",
    "docker *": "needs a container engine: tests/test_container.py runs the steps of the Dockerfile",
    "CUDA_VISIBLE_DEVICES=0 python benchmarks/twins.py OUT --data DIR --seeds 5": "hours on a GPU",
}


def commands(document: str) -> list[str]:
    """The commands of a document's blocks, without comments, in order."""
    text, found = (ROOT / document).read_text(encoding="utf-8"), []
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        lines = block.replace("\\\n", " ").splitlines()
        if language == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        elif language != "sh":
            assert not re.match(r"(mobilemoe|python|pip|make|docker|curl) ", block), (
                f"{document}: mark it as sh: {block}"
            )
            continue
        stripped = (" ".join(re.sub(r"(^|\s)#\s.*", "", line).split()) for line in lines)
        found += [line for line in stripped if line]
    return found


def reason(command: str) -> str | None:
    """Why the command is not run."""
    for named, why in NOT_RUN.items():
        if command == named or (named.endswith("*") and command.startswith(named[:-1])):
            return why
    return None


@pytest.fixture
def workplace(tmp_path):
    """A folder with what the commands read, small, and the variables of a shell that finds them."""
    for name in ("benchmarks", "src", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(RECIPES, tmp_path / "recipes")
    shutil.copy(RECIPES / "sweep" / "law.json", tmp_path)
    (tmp_path / "tests" / "data").mkdir(parents=True)
    few = HELDOUT.read_text().splitlines(keepends=True)[::100]
    (tmp_path / "tests" / "data" / "heldout.jsonl").write_text("".join(few))
    (tmp_path / "my.jsonl").write_text(f"{json.dumps(EXAMPLE_CHAT)}\n" * 4)
    (tmp_path / "nano-int4").symlink_to(ROOT / "src" / "mobilemoe" / "assets" / "nano")
    (tmp_path / "results").mkdir()
    for name in ("nano-quick", "other"):
        write_results(results(name, without=FOURTEEN[2:]), tmp_path / "results" / f"{name}.json")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, call in {"mobilemoe": "-m mobilemoe", "python": ""}.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {call} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    variables = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "KEY": "a key"}
    return {"cwd": tmp_path, "env": variables}


def run(command, workplace):
    if command.startswith("mobilemoe serve "):
        return serve(command, workplace)
    done = subprocess.run(["bash", "-c", command], input="Hi\n", capture_output=True, text=True, **workplace)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return None


def serve(command, workplace):
    """Starts the server at a free port, asks for its health, and ends it."""
    started = ["bash", "-c", f"exec {command} --port 0 --json"]
    with subprocess.Popen(started, stdout=subprocess.PIPE, text=True, **workplace) as process:
        address = json.loads(process.stdout.readline())["address"].replace("0.0.0.0", "127.0.0.1")
        with urllib.request.urlopen(f"{address.removesuffix('/v1')}/health", timeout=60) as answer:
            assert json.load(answer)["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if commands(name)])
def test_the_commands_of_a_document_run(document, workplace):
    for command in commands(document):
        if reason(command) is None and command not in SLOW:
            run(CHANGED.get(command, command), workplace)


@pytest.mark.slow
@pytest.mark.parametrize("document", [name for name in DOCUMENTS if SLOW.intersection(commands(name))])
def test_the_slow_commands_of_a_document_run(document, workplace):
    for command in commands(document):
        if command in SLOW:
            run(CHANGED.get(command, command), workplace)


def test_nothing_is_excused_that_no_document_shows():
    shown = [command for document in DOCUMENTS for command in commands(document)]
    assert not (CHANGED.keys() | SLOW) - set(shown)
    for named in NOT_RUN:
        assert any(command == named or command.startswith(named.rstrip("*")) for command in shown), named
