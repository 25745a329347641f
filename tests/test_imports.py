"""The promise of DESIGN.md's list: each room imports the rooms listed for it and no other, and the package no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mobilemoe

ROOT = Path(mobilemoe.__file__).parent
LEAVES = {
    "errors",
    "files",
    "cores",
    "cache",
    "config_rules",
    "config_rope",
    "config_keys",
    "config",
    "accounting",
    "presets",
    "sampling",
    "ids",
    "drawing",
    "page",
}

# "A -> B": what a room may import besides itself. The leaves are open to all, and strict among themselves.
RULES: dict[str, set[str]] = {
    "errors": set(),
    "files": {"errors"},
    "cores": set(),
    "cache": {"errors", "files"},
    "config_rules": {"errors"},
    "config_rope": {"config_rules", "errors"},
    "config_keys": {"config_rules", "errors"},
    "config": {"config_rules", "config_rope", "config_keys", "errors", "files"},
    "accounting": {"config", "errors", "files"},
    "presets": {"config", "config_rope", "config_rules", "accounting", "errors"},
    "sampling": {"errors"},
    "ids": {"errors"},
    "drawing": {"errors"},
    "page": set(),
    "tokenizer": LEAVES,
    "chat": LEAVES,
    "hub": LEAVES,
    "writer": LEAVES | {"tokenizer"},
    "checkpoint": LEAVES,
    "model": LEAVES,
    "quant": LEAVES | {"checkpoint"},
    "engine": LEAVES | {"checkpoint", "tokenizer", "chat"},
    "data": LEAVES | {"tokenizer", "chat", "hub"},
    "train": LEAVES | {"model", "data", "quant", "checkpoint", "tokenizer", "chat", "hub"},
    "load": LEAVES | {"hub", "checkpoint", "tokenizer", "chat", "engine", "model", "writer"},
    "profile": LEAVES | {"engine", "checkpoint", "load"},
    "scaling": LEAVES | {"profile"},
    "scaling.sweep": LEAVES | {"profile", "train", "model", "data", "checkpoint", "tokenizer", "chat", "hub"},
    "evaluate": LEAVES | {"load", "engine", "model", "quant", "checkpoint", "data", "profile", "chat", "writer"},
    "serve": LEAVES | {"load", "engine", "chat", "tokenizer"},
    "export": LEAVES | {"checkpoint", "model", "quant", "tokenizer", "chat"},
    "": LEAVES | {"load", "model"},  # the package itself: the two-line API
}
RULES["cli"] = {*RULES} - {"scaling.sweep"}
RULES["__main__"] = {"cli"}


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


def room_of(imported: str) -> str:
    """The room that an imported name lies in: "" for what the package itself exports."""
    room = imported.split(".")[0]
    return room if (ROOT / room).is_dir() or (ROOT / f"{room}.py").is_file() else ""


def breaches(source: str, module: str, is_package: bool = False) -> set[tuple[str, str]]:
    parts = module.split(".")
    room = parts[0]
    part = ".".join(parts[:2])  # of a room, with a rule of its own
    allowed = RULES[part if part in RULES else room] | {room}
    return {(room, target) for target in map(room_of, imports(source, module, is_package)) if target not in allowed}


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_the_rooms_listed_for_its_own(module):
    assert module.split(".")[0] in RULES, f"{module} is in no room of DESIGN.md's list: say there what it may import"
    path = MODULES[module]
    found = breaches(path.read_text(), module, path.name == "__init__.py")
    assert not found, f"{path} imports rooms that are not listed for its own: {found}"


def test_nobody_imports_the_cli_or_the_package_itself_but_the_cli():
    for module, path in MODULES.items():
        if module.split(".")[0] not in ("cli", "", "__main__"):
            rooms = {room_of(name) for name in imports(path.read_text(), module, path.name == "__init__.py")}
            assert not rooms & {"cli", ""}, module


def test_the_rules_have_no_circle():
    def reach(room, seen=()):
        assert room not in seen, (*seen, room)
        for other in RULES[room] - {room}:
            reach(other, (*seen, room))

    for room in RULES:
        reach(room)


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
        ("scaling.fit", "from mobilemoe.train.loop import train", {("scaling", "train")}),
        ("scaling.sweep", "from mobilemoe.train.loop import train", set()),
        ("scaling.sweep.worker", "from mobilemoe.train.loop import train", set()),
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
