"""One small file of each kind that a verb reads, and the calls that read them, for the tests of damage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobilemoe.checkpoint import write_random
from mobilemoe.presets import family_member
from mobilemoe.profile.device import Device
from mobilemoe.sweep.grid import load_grid
from mobilemoe.sweep.runs import grid_runs
from mobilemoe.sweep.table import add_row
from mobilemoe.tokenizer import Tokenizer

TEXT = "the fox runs to a river and eats red berries in the summer while small fish swim under old stones"
RECIPE = """name = "small"

[tokenizer]
path = "tok"

[model]
{model}

[data]
path = "text"
seed = 1
holdout = 0.1
piece_chars = 500
mixture = [{{ name = "own", files = "*.jsonl", weight = 1.0 }}]

[train]
steps = 1
batch_size = 2
sequence_length = 32
learning_rate = 1e-2
warmup_steps = 0
precision = "fp32"
threads = 1
checkpoint_every = 1
"""
NEW = """preset = "micro"

[model.changes]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 1
head_dim = 16
intermediate_size = 32
intermediate_size_mlp = 64
num_local_experts = 4
num_experts_per_tok = 2"""
SWEEP = """
[scaling]
flops_per_second = 1e9
held_out = 0

[heldout]
path = "heldout.jsonl"
tokens = 256

[blocks.all]
sizes = [{ hidden_size = 32, layers = 1 }, { hidden_size = 64, layers = 1 }, { hidden_size = 96, layers = 1 }]
tokens = [256, 512, 1024]
experts = [1]
granularity = [2]
shared = [0]
"""
Call = Callable[..., None]


def build(folder: Path, call: Call) -> None:
    """Fills the empty `folder`; `call` runs a verb in it, which must succeed."""
    text, chats = folder / "text", folder / "chats"
    text.mkdir()
    chats.mkdir()
    words = TEXT.split()
    sentences = [" ".join(words[(7 * n + k * (n % 5 + 1)) % len(words)] for k in range(40)) for n in range(24)]
    _rows(text / "own.jsonl", [{"text": text, "source": f"page {n}"} for n, text in enumerate(sentences)])
    _rows(folder / "heldout.jsonl", [{"text": text, "source": "own", "domain": "own"} for text in sentences[:6]])
    turns = [("user", "Where does the fox run?"), ("assistant", "To the river.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    _rows(chats / "own.jsonl", [{"messages": messages, "source": "own", "category": "fox"}] * 12)
    (folder / "recipe.toml").write_text(RECIPE.format(model=NEW))
    (folder / "init.toml").write_text(RECIPE.format(model='init = "bf16"').replace('"text"', '"chats"'))
    (folder / "grid.toml").write_text(RECIPE.format(model='preset = "micro"') + SWEEP)
    call("data", "tokenizer", "recipe.toml", "tok", "--vocab-size", "320", "--megabytes", "0.05")
    _model(folder / "tiny", folder / "tok")
    shutil.copytree(folder / "tiny", folder / "jinja")
    template = json.loads((folder / "tok" / "tokenizer_config.json").read_text()).pop("chat_template")
    (folder / "jinja" / "chat_template.jinja").write_text(template)
    call("convert", "tiny", "bf16", "--format", "bf16")
    call("convert", "tiny", "engine", "--format", "engine")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        for model in ("bf16", "engine"):
            if not (folder / model / name).exists():
                shutil.copy(folder / "tok" / name, folder / model)
    call("train", "recipe.toml", "--out", "run")
    call("data", "prepare", "recipe.toml", "prepared")
    runs = [
        f"r{n},{3.1 + 0.4 / (1 + n % 4) + 0.3 / (1 + n // 4)},{2e8 * 2 ** (n % 4)},{1e10 * 2 ** (n // 4)}"
        for n in range(16)
    ]
    (folder / "runs.csv").write_text("\n".join(["id,loss,n_active,tokens", *runs, ""]))
    call("fit", "runs.csv", "--law", "chinchilla", "--bootstraps", "4", "--out", "law.json")
    rates = dict.fromkeys(("attention_rate", "prefill_linear_rate", "prefill_attention_rate"), 1e10)
    Device(name="made", threads=2, weight_bandwidth=1e10, routed_cost=1.5, source="made up", **rates).save(
        folder / "device.toml"
    )
    (folder / "items").mkdir()
    items = [{"query": f"The fox {n} runs to", "choices": ["a river", "red berries"], "gold": n % 2} for n in range(6)]
    _rows(folder / "items" / "hellaswag.jsonl", items)
    call("eval", "tiny", "--suite", "hellaswag", "--data", "items", "--cache", "store", "--out", "results")
    shutil.copytree(folder / "store", folder / "answers")  # in which no other call keeps its own
    _cache(folder / "kept" / "mobilemoe", folder / "engine" / "model.mobilemoe")
    call(*RUN, cache="kept")
    _sweep(folder)


def _rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _model(folder: Path, tokenizer: Path) -> None:
    ids = Tokenizer.load(tokenizer)
    config = family_member(
        32,
        expansion=2,
        granularity=2,
        layers=2,
        vocab_size=ids.vocab_size,
        max_position_embeddings=256,
        bos_token_id=ids.bos_id,
        eos_token_id=ids.stop_ids,
        eot_token_id=ids.eot_id,
        header_start_token_id=ids.header_start_id,
        header_end_token_id=ids.header_end_id,
    )
    write_random(folder, config, seed=1, format="int4")
    for path in tokenizer.iterdir():
        shutil.copy(path, folder)


def _cache(folder: Path, engine_file: Path) -> None:
    """A user's cache that holds one thing of each kind."""
    for kind in ("engine", "evaluate/answers", "random/small"):
        (folder / kind).mkdir(parents=True, mode=0o700)
    shutil.copy(engine_file, folder / "engine" / "old.mobilemoe")
    (folder / "engine" / "old.json").write_text(json.dumps({"model": "/models/old"}))
    (folder / "engine" / "known.json").write_text(json.dumps({"a signature": "00" * 32}))
    (folder / "evaluate" / "answers" / "settings.json").write_text(json.dumps({"model": "old", "batch": 8}))
    (folder / "evaluate" / "answers" / "requests.jsonl").write_text('["a", [-1.5, true]]\n')


def _sweep(folder: Path) -> None:
    """A sweep whose runs are all finished, or so its table says."""
    add_row(folder / "sweep" / "failures.csv", {"id": "gone", "block": "all", "reason": "NaN", "key": "0" * 16})
    (folder / "sweep" / "grid.json").write_text("{}")
    for run in grid_runs(load_grid(folder / "grid.toml")):
        loss = 2 + 100 / run.tokens + 1e5 / run.columns["n_active"]
        scores = {"train_loss": loss, "loss": loss, "repeated": 0, "key": run.key}
        add_row(folder / "sweep" / "runs.csv", run.columns | scores)


@dataclass(frozen=True)
class Target:
    """A call, and the file that it reads and that is damaged."""

    arguments: tuple[str, ...]
    file: str
    kind: str
    optional: bool = False  # it works without the file
    writes: str | None = None  # what it makes, and does not make where it fails
    stdin: str = ""
    names: tuple[str, ...] = ()  # what a sentence may name in the file's place
    lenient: bool = False  # the file is our own: damage is left out, or found by a hash
    harmless: bool = False  # whatever the file holds, the result must be the same
    cache: str = "cache"  # the folder that is the user's cache
    step: int = 1  # of the damage to what the file says, every so many-th is done each day

    @property
    def name(self) -> str:
        return " ".join(self.arguments[:2]) + " < " + self.file.replace("*", "")


def _of_model(model: str, *arguments: str, **options) -> list[Target]:
    """A call that opens a model, for each of the model's files."""
    weights = ("model.mobilemoe", "bytes", False) if model == "engine" else ("model.safetensors", "safetensors", False)
    files = [("config.json", "json", False), weights]
    if arguments[0] not in ("info", "convert", "quantize", "bench"):
        files += [("tokenizer.json", "json", False)]
    if arguments[0] == "chat":
        files += [("tokenizer_config.json", "json", True)]
    return [Target(arguments, f"{model}/{file}", kind, optional, **options) for file, kind, optional in files]


RUN = ("run", "tiny", "the fox", "--max-new-tokens", "3")
SUITE = ("eval", "tiny", "--suite", "hellaswag", "--data", "items", "--cache", "store", "--out", "out")
PRUNE = ("prune", "tiny", "--text", "text/own.jsonl", "--experts", "2", "--out", "out")
ENGINE = "kept/mobilemoe/engine/"
READY = 'data.mixture=[{name = "own", files = "own-*.npz", weight = 1.0}]'
TARGETS = [
    *_of_model("tiny", "info", "tiny", "--json"),
    *_of_model("tiny", "info", "tiny", "--verify", step=9),
    *_of_model("tiny", *RUN, step=4),
    *_of_model("tiny", *RUN, "--backend", "torch", step=9),
    *_of_model("bf16", "run", "bf16", "the fox", "--max-new-tokens", "3", "--quantize", "int4", step=9),
    *_of_model("engine", "run", "engine", "the fox", "--max-new-tokens", "3", step=9),
    *_of_model("tiny", "chat", "tiny", "--max-new-tokens", "3", stdin="the fox\n", step=6),
    Target(
        ("chat", "jinja", "--max-new-tokens", "3"),
        "jinja/chat_template.jinja",
        "jinja",
        optional=True,
        stdin="the fox\n",
        names=("the chat template",),
    ),
    *_of_model("tiny", "bench", "tiny", "--prefill", "8", "--depths", "0", "--repeats", "1", step=99),
    *_of_model("tiny", "convert", "tiny", "out", "--format", "bf16", writes="out", step=6),
    *_of_model("tiny", "convert", "tiny", "out", "--format", "engine", writes="out", step=9),
    *_of_model("tiny", "export", "tiny", "--to", "gguf", "--out", "out", writes="out", step=9),
    *_of_model("tiny", "export", "tiny", "--to", "glm4moe", "--out", "out", writes="out", step=11),
    *_of_model("bf16", "quantize", "bf16", "out", writes="out", step=9),
    *_of_model("tiny", *PRUNE, writes="out", step=40),
    Target(PRUNE, "text/own.jsonl", "jsonl", writes="out", step=20),
    Target(("quantize", "run", "out"), "run/recipe.json", "json", True, "out", step=5),
    Target(("info", "run"), "run/checkpoints/step-00000001/config.json", "json", step=9),
    *_of_model("tiny", "eval", "tiny", "--text", "text/own.jsonl", step=9),
    Target(("eval", "tiny", "--text", "text/own.jsonl", "--json"), "text/own.jsonl", "jsonl"),
    Target(("eval", "tiny", "--text", "chats/own.jsonl", "--json"), "chats/own.jsonl", "jsonl"),
    *_of_model("bf16", "eval", "tiny", "--text", "heldout.jsonl", "--against", "bf16", step=40),
    Target(("eval", "tiny", "--text", "heldout.jsonl", "--against", "bf16"), "heldout.jsonl", "jsonl", step=20),
    Target(SUITE, "items/hellaswag.jsonl", "jsonl", step=2),
    Target((*SUITE, "--cache", "answers"), "answers/*/requests.jsonl", "jsonl", lenient=True, step=9),
    Target((*SUITE, "--cache", "answers"), "answers/*/settings.json", "json", lenient=True, step=9),
    *_of_model("engine", *SUITE, "--against", "engine", step=40),
    Target((*SUITE, "--training", "recipe.toml"), "recipe.toml", "toml", step=20),
    Target((*SUITE, "--training", "text/own.jsonl"), "text/own.jsonl", "jsonl", step=20),
    Target(
        ("report", "results/tiny-hellaswag.json", "--card", "out.md"),
        "results/tiny-hellaswag.json",
        "json",
        writes="out.md",
    ),
    Target(
        ("report", "results/tiny-hellaswag.json", "--out", "out.html"),
        "results/tiny-hellaswag.json",
        "json",
        writes="out.html",
        step=20,
    ),
    Target(
        ("fit", "runs.csv", "--law", "chinchilla", "--bootstraps", "0", "--out", "out.json"),
        "runs.csv",
        "csv",
        writes="out.json",
    ),
    Target(
        ("plan", "--memory", "1GB", "--train-flops", "8e20", "--law", "law.json", "--top", "1"),
        "law.json",
        "json",
        step=3,
    ),
    Target(
        ("plan", "--memory", "1GB", "--train-flops", "8e20", "--decode", "1", "--device", "device.toml"),
        "device.toml",
        "toml",
        step=3,
    ),
    Target(("sweep", "grid.toml", "--list"), "grid.toml", "toml", step=2),
    Target(("fit", "sweep/runs.csv", "--law", "chinchilla", "--bootstraps", "0"), "sweep/runs.csv", "csv", step=4),
    Target(("sweep", "grid.toml", "--out", "sweep"), "sweep/runs.csv", "csv", step=20),  # a lost row is trained
    Target(("sweep", "grid.toml", "--out", "sweep"), "sweep/failures.csv", "csv", optional=True, step=4),
    Target(("sweep", "grid.toml", "--out", "sweep"), "sweep/grid.json", "json", lenient=True, step=9),
    Target(("train", "recipe.toml", "--plan"), "recipe.toml", "toml", step=2),
    Target(("train", "init.toml", "--plan"), "init.toml", "toml", step=4),
    Target(("train", "init.toml", "--out", "out"), "bf16/config.json", "json", step=20),
    Target(("train", "init.toml", "--out", "out"), "tok/tokenizer.json", "json", step=20),
    Target(("train", "init.toml", "--out", "out"), "tok/tokenizer_config.json", "json", step=20),
    Target(("train", "init.toml", "--out", "out"), "chats/own.jsonl", "jsonl", names=("'own'",), step=4),
    Target(("train", "recipe.toml", "--out", "out"), "text/own.jsonl", "jsonl", names=("'own'",), step=6),
    Target(("train", "recipe.toml", "--out", "run"), "run/recipe.json", "json", step=9),
    Target(
        ("train", "recipe.toml", "--out", "run", "--set", "train.steps=2"),
        "run/checkpoints/step-00000001/state.json",
        "json",
        lenient=True,
        step=9,
    ),
    Target(
        ("train", "recipe.toml", "--out", "run", "--set", "train.steps=2"),
        "run/metrics.jsonl",
        "jsonl",
        lenient=True,
        step=6,
    ),
    Target(
        ("train", "recipe.toml", "--out", "out", "--set", "data.path=prepared", "--set", READY),
        "prepared/prepared.json",
        "json",
        step=6,
    ),
    Target(("data", "prepare", "recipe.toml", "out"), "recipe.toml", "toml", writes="out", step=12),
    Target(("data", "prepare", "recipe.toml", "out"), "text/own.jsonl", "jsonl", writes="out", names=("'own'",)),
    Target(("data", "prepare", "init.toml", "out"), "chats/own.jsonl", "jsonl", writes="out", names=("'own'",)),
    Target(("data", "prepare", "recipe.toml", "out"), "tok/tokenizer.json", "json", writes="out", step=6),
    Target(
        ("data", "sample", "recipe.toml", "out", "--split", "train"),
        "text/own.jsonl",
        "jsonl",
        writes="out",
        names=("'own'",),
        step=4,
    ),
    Target(
        ("data", "tokenizer", "recipe.toml", "out", "--vocab-size", "310"),
        "text/own.jsonl",
        "jsonl",
        writes="out",
        names=("'own'",),
        step=4,
    ),
    Target(
        ("data", "chats", "chats/own.jsonl", "--out", "out.jsonl", "--holdout", "0"),
        "chats/own.jsonl",
        "jsonl",
        writes="out.jsonl",
        step=2,
    ),
    Target(RUN, f"{ENGINE}known.json", "json", harmless=True, cache="kept", step=3),
    Target(RUN, f"{ENGINE}*-v*.mobilemoe", "bytes", harmless=True, cache="kept"),
    Target(RUN, f"{ENGINE}*-v*.json", "json", harmless=True, cache="kept", step=9),
    Target(("cache", "ls"), f"{ENGINE}old.json", "json", lenient=True, cache="kept"),
    Target(("cache", "ls", "--json"), f"{ENGINE}old.mobilemoe", "bytes", lenient=True, cache="kept"),
    Target(("cache", "ls"), "kept/mobilemoe/evaluate/answers/settings.json", "json", lenient=True, cache="kept"),
    Target(("cache", "rm", "--all"), f"{ENGINE}old.json", "json", lenient=True, cache="kept", step=9),
    Target(("cache", "rm", "engine/old.mobilemoe"), f"{ENGINE}old.mobilemoe", "bytes", lenient=True, cache="kept"),
]
