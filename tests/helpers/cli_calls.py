"""How the tests call verbs: in this process, as the console script would."""

import io
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from mobilemoe.cli import main as cli_main
from mobilemoe.progress import Progress
from places import RECIPES

RECIPE = RECIPES / "nano-cpu.toml"


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        value = json.loads(self.out.splitlines()[-1])
        assert isinstance(value, dict)
        return value


@pytest.fixture
def mobilemoe_cli(capsys, monkeypatch):
    """Calls a verb as the console script does."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True, raising=False)

    def call(*arguments, stdin: str | bytes = "") -> Ended:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        monkeypatch.setattr(sys, "argv", ["mobilemoe", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli_main.main()
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return Ended(ended.value.code or 0, out, err)

    return call


@pytest.fixture
def fails(mobilemoe_cli, monkeypatch):
    """Calls a verb that must fail with one line; gives that line."""
    # On a busy machine any call may take so long that it says how far it is.
    monkeypatch.setitem(Progress.__init__.__kwdefaults__, "seconds", math.inf)

    def call(status: int, *arguments, **options) -> str:
        ended = mobilemoe_cli(*arguments, **options)
        assert ended.status == status, ended.err
        lines = ended.err.strip().splitlines()
        if status == 1 or lines[-1].startswith("mobilemoe: "):
            assert len(lines) == 1, ended.err
            assert lines[0].startswith("mobilemoe: ")
        return ended.err

    return call


def recipe_options(model: Path) -> list[str]:
    """A training run of seconds: `nano-cpu` with the smallest model."""
    changes = ["train.batch_size=2", "train.sequence_length=32", "train.warmup_steps=0", "model.preset=micro"]
    changes += ["model.changes.num_hidden_layers=1", f"tokenizer.path={model}"]
    return [part for change in changes for part in ("--set", change)]
