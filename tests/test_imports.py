"""The promise of docs/architecture.md's list: each room imports the rooms listed for it and no other, no two modules
import each other, and the package needs no torch.

A room is a module or a folder of src/mobilemoe; a folder in it that is listed by itself is a room of its own.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mobilemoe
import places

ROOT = Path(mobilemoe.__file__).parent
ARCHITECTURE = places.ROOT / "docs" / "architecture.md"


def read_rules(page: str) -> dict[str, set[str]]:
    """What each room may import besides itself, from the page's block of imports; "" is the package itself."""
    block = page.split("```imports\n")[1].split("```")[0]
    leaves = {line.split("->")[0].strip() for line in block.split("\n\n")[0].splitlines()}
    rules: dict[str, set[str]] = {}
    for line in filter(None, block.splitlines()):
        room, _, named = line.partition("->")
        targets = {name.strip() for name in named.split(",")} - {""}
        rules[room.strip()] = targets - {"leaves"} | (leaves if "leaves" in targets else set())
    rules[""] = rules.pop("package")
    rules["cli"] = {*rules} - {"__main__"}
    return rules


RULES = read_rules(ARCHITECTURE.read_text())


def module_name(path: Path) -> str:
    """ "data.loader" for src/mobilemoe/data/loader.py, "data" for its __init__, "" for the package itself."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Modules of ours that `source` imports anywhere in it, without "mobilemoe."; names count as modules."""
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = ["mobilemoe", *filter(None, module.split("."))]
                above = here[: len(here) - node.level + is_package]
                base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name == "mobilemoe" or name.startswith("mobilemoe."):
                yield name.removeprefix("mobilemoe").removeprefix(".")


def room_of(module: str) -> str:
    """The smallest room with a rule that a module, or a name in one, lies in: "" for what the package exports."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        room = ".".join(parts[:end])
        if room in RULES:
            return room
    return parts[0] if (ROOT / parts[0]).is_dir() or (ROOT / f"{parts[0]}.py").is_file() else ""


def breaches(source: str, module: str, is_package: bool = False) -> set[tuple[str, str]]:
    room = room_of(module)
    allowed = RULES[room] | {room}
    return {(room, target) for target in map(room_of, imports(source, module, is_package)) if target not in allowed}


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_rooms_listed_for_its_own(module):
    assert room_of(module) in RULES, f"{module} is in no room of docs/architecture.md: say there what it may import"
    path = MODULES[module]
    found = breaches(path.read_text(), module, path.name == "__init__.py")
    assert not found, f"{path} imports rooms that are not listed for its own: {found}"


def test_nobody_imports_the_cli_or_the_package_itself_but_the_cli():
    for module, path in MODULES.items():
        if module.split(".")[0] not in ("cli", "", "__main__"):
            rooms = {room_of(name) for name in imports(path.read_text(), module, path.name == "__init__.py")}
            assert not rooms & {"cli", ""}, module


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Some nodes that lead to one another, in order, the first again at the end; empty if there are none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        found = next(filter(None, (walk(other, [*path, node]) for other in sorted(arrows.get(node, ())))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(arrows))), [])


def module_arrows(sources: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Which modules each imports, anywhere in it; a name that is no module counts as the module that it lies in."""

    def modules(name: str) -> set[str]:
        while name and name not in sources:
            name = name.rpartition(".")[0]
        return {name} if name else set()

    return {
        module: {other for name in imports(source, module, is_package) for other in modules(name)} - {module}
        for module, (source, is_package) in sources.items()
    }


def test_the_page_names_no_room_that_is_not_there():
    rooms = {*RULES} - {""}
    assert {room for room in rooms if not (ROOT / room.replace(".", "/")).is_dir()} == {
        room for room in rooms for end in (".py", ".pyi") if (ROOT / f"{room.replace('.', '/')}{end}").is_file()
    }
    assert set().union(*RULES.values()) <= {*RULES}


def test_the_rules_have_no_circle():
    assert circle({room: targets - {room} for room, targets in RULES.items()}) == []


def test_no_two_modules_import_each_other_not_even_through_others():
    sources = {module: (path.read_text(), path.name == "__init__.py") for module, path in MODULES.items() if module}
    sources["engine._native"] = ("", False)  # compiled
    assert circle(module_arrows(sources)) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"a": "from mobilemoe import b", "b": "x = 1"}, []),
        ({"a": "from mobilemoe import b", "b": "from mobilemoe.a import x"}, ["a", "b", "a"]),
        (
            {"a": "import mobilemoe.b", "b": "def f():\n    from mobilemoe.c import x", "c": "import mobilemoe.a"},
            "abca",
        ),
        ({"a": "if TYPE_CHECKING:\n    from mobilemoe.b import B", "b": "from mobilemoe import a"}, ["a", "b", "a"]),
    ],
)
def test_a_circle_of_modules_is_seen(sources, expected):
    assert circle(module_arrows({name: (text, False) for name, text in sources.items()})) == [*expected]


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("model.router", "from mobilemoe.train.loop import train", {("model", "train")}),
        ("model.router", "import mobilemoe.train.loop as loop", {("model", "train")}),
        ("model.router", "from mobilemoe import train, config", {("model", "train")}),
        ("model.router", "def f():\n    if True:\n        from mobilemoe.data import loader", {("model", "data")}),
        ("model.router", "from typing import *\nif TYPE_CHECKING:\n    import mobilemoe.hub", {("model", "hub")}),
        ("model.router", "from ..data.loader import x", {("model", "data")}),
        ("model.router", "from .norm import x\nfrom . import rope\nfrom ..config import y\nimport torch", set()),
        ("model.router", "import importlib\nimportlib.import_module('mobilemoe.train')", {("model", "train")}),
        ("model.router", "from mobilemoe import load", {("model", "load")}),
        ("model.router", "from mobilemoe import ModelConfig", {("model", "")}),
        ("errors", "from mobilemoe.files import read_json", {("errors", "files")}),
        ("accounting", "from mobilemoe import presets", {("accounting", "presets")}),
        ("checkpoint.folder", "from mobilemoe.tokenizer import Tokenizer", {("checkpoint", "tokenizer")}),
        ("scaling.law.fit", "from mobilemoe.train.loop import train", {("scaling.law", "train")}),
        ("scaling.plan.plan", "from mobilemoe.sweep.grid import plan", {("scaling.plan", "sweep")}),
        ("scaling.plan.plan", "from mobilemoe.scaling.law import fit", set()),
        ("scaling.law.fit", "from mobilemoe.scaling.plan.plan import plan", {("scaling.law", "scaling.plan")}),
        ("scaling.law.fit", "from mobilemoe.scaling import plan", {("scaling.law", "scaling.plan")}),
        ("scaling.law.fit", "from mobilemoe.scaling import read_runs", {("scaling.law", "scaling")}),
        ("evaluate.results.rows", "from mobilemoe.evaluate import run", {("evaluate.results", "evaluate")}),
        ("train.parallel.rank_failure", "from mobilemoe.train import loop", set()),
        ("sweep.worker", "from mobilemoe.train.loop import train", set()),
        ("load", "from mobilemoe.cli.main import main", {("load", "cli")}),
        ("cli.run", "from mobilemoe import load, chat\nfrom mobilemoe.train import loop", set()),
    ],
)
def test_the_check_itself_sees_every_kind_of_import(module, source, expected):
    assert breaches(source, module) == expected


@pytest.mark.parametrize("modules", ["mobilemoe", "mobilemoe.checkpoint, mobilemoe.tokenizer, mobilemoe.chat"])
def test_importing_what_the_runtime_needs_imports_no_torch_nor_any_extra(modules):
    script = (
        f"import sys, {modules}\n"
        "extras = ('torch', 'transformers', 'datasets', 'huggingface_hub', 'pyarrow', 'pydantic', 'matplotlib')\n"
        "print([name for name in extras if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_run_and_chat_import_no_torch():
    script = (
        "import sys\n"
        "from mobilemoe.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)\n"
    )
    for verb, *arguments in (("run", "nano", "Hi", "--max-new-tokens", "2"), ("chat", "nano", "--max-new-tokens", "2")):
        command = [sys.executable, "-c", script, verb, *arguments]
        done = subprocess.run(command, input="Hi\n", capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "0 False", done


def test_the_model_is_had_from_the_package_when_it_is_asked_for():
    script = "import mobilemoe\nassert mobilemoe.MobileMoE.__module__ == 'mobilemoe.model.transformer'"
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        mobilemoe.missing  # noqa: B018
