"""The conversion matrix: how far each conversion's weights and outputs were measured to be from their source's.

`docs/conversions.json` keeps what the tests measured, and `docs/export.md` shows it as a table. A test measures through
the fixture `conversion`, which refuses an error beyond the kept one; `make matrix` keeps and shows the new ones.
"""

import json
from importlib.metadata import version

import numpy as np
import pytest

from mobilemoe.checkpoint import Report
from mobilemoe.config import ModelConfig
from mobilemoe.export.gguf_layout import architecture
from mobilemoe.export.mlx import mlx_config
from places import ROOT

KEPT = ROOT / "docs" / "conversions.json"
PAGE = ROOT / "docs" / "export.md"
BEGIN, END = "<!-- conversions: by `make matrix` -->\n", "<!-- /conversions -->\n"
REWRITE = "--rewrite-conversions"
SLACK = 1.5  # a processor with other vector instructions adds in another order, and rounding falls otherwise
FP32_ROUNDING = 1e-5  # errors of outputs below it are of fp32 itself, and differ by more

# Names of what is converted.
BF16, INT4_IN, INT4_OUT = "BF16", "INT4 `in`", "INT4 `out`"
GLM4MOE, HF = "Glm4Moe", "`mobilemoe.hf`"


def gguf_file(type: str, config: ModelConfig) -> str:
    return f"GGUF `{type}`, `{architecture(config)}`"


def mlx_folder(config: ModelConfig) -> str:
    return f"MLX, `{mlx_config(config)['model_type']}`"


MEASURED = pytest.StashKey[dict]()  # rows by key


def relative_rms(a: np.ndarray, b: np.ndarray) -> float:
    """How far a is from b: the root of the mean square of a - b over that of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)))


@pytest.fixture
def conversion(request):
    """Keeps or checks one error of the conversion of `source` to `target`.

    `what` was compared, in the weights or in the outputs of `runtime`, a distribution's name; `error` is relative, the
    greatest of several calls counts, and 0 says that all is equal. A report stands for its worst kind of weight. Errors
    of outputs up to `accepted` pass whatever was kept.
    """

    def measured(
        source: str,
        target: str,
        error: float | Report,
        what: str = "weights",
        runtime: str = "",
        accepted: float = FP32_ROUNDING,
    ) -> None:
        if isinstance(error, Report):
            error = 0.0 if error.lossless else max(kind.relative_rms for kind in error.kinds.values())
        key = (source, target, what, runtime)
        found = request.config.stash.setdefault(MEASURED, {})
        greatest = max(error, found.get(key, {}).get("error", 0.0))
        found[key] = {
            **dict(zip(("from", "to", "what", "runtime"), key, strict=True)),
            "version": version(runtime) if runtime else "",
            "error": float(f"{greatest:.2g}"),
            "test": f"{request.path.relative_to(ROOT).as_posix()}::{request.function.__name__}",
        }
        if request.config.getoption(REWRITE):
            return
        kept = {key_of(row): row for row in load()}
        assert key in kept, f"{key} is in no row of {KEPT.name}: run `make matrix`"
        most = SLACK * kept[key]["error"]
        assert error <= (most if what == "weights" else max(most, accepted)), (key, error)

    return measured


def key_of(row: dict) -> tuple:
    return (row["from"], row["to"], row["what"], row["runtime"])


def load() -> list[dict]:
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(REWRITE, action="store_true", help="keep and show the errors that this run measures")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.config.getoption(REWRITE):
        rewrite(session.config)


def rewrite(config: pytest.Config) -> None:
    """Keeps what the tests of this run measured, beside the rows that it did not measure, and shows all."""
    found = {key_of(row): row for row in load()} | config.stash.get(MEASURED, {})
    rows = [found[key] for key in sorted(found)]
    KEPT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(rows) + END + after, encoding="utf-8")


def shown() -> str:
    """The table as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def table(rows: list[dict]) -> str:
    """One line for each conversion, in the order of the rows."""
    lines = ["| from | to | weights | outputs | run in |", "|---|---|---|---|---|"]
    pairs = dict.fromkeys((row["from"], row["to"]) for row in rows)
    for pair in pairs:
        own = [row for row in rows if (row["from"], row["to"]) == pair]
        weights = [words(row["error"]) for row in own if row["what"] == "weights"]
        outputs = [f"{row['what']} {words(row['error'])}" for row in own if row["what"] != "weights"]
        runtimes = dict.fromkeys(f"{row['runtime']} {row['version']}" for row in own if row["runtime"])
        lines.append("| " + " | ".join([*pair, *("; ".join(cell) for cell in (weights, outputs, runtimes))]) + " |")
    return "\n".join(lines) + "\n"


def words(error: float) -> str:
    if error == 0:
        return "equal"
    return f"{100 * error:.2g}%" if error >= 1e-5 else f"{error:.0e}".replace("e-0", "e-")
