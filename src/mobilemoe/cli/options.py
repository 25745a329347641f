"""Arguments, options and groups of options that several verbs share, and how results are printed."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast, get_type_hints

import typer
from rich.console import Console

import mobilemoe
from mobilemoe.cli.quantity import BYTES, quantity
from mobilemoe.cores import allowed_cores
from mobilemoe.errors import MissingExtraError, UsageError
from mobilemoe.routing import Routing

if TYPE_CHECKING:
    from mobilemoe.load import Model
    from mobilemoe.train.recipe import Recipe

WIDE = 120  # the width of tables with many columns, in characters

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A model: a folder, a training run's folder, the bundled nano, or a Hub id (ORG/NAME)."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the results as one JSON object, the last line.")]
RecipeArgument = Annotated[
    Path, typer.Argument(metavar="RECIPE", help="A recipe in TOML, such as recipes/nano-cpu.toml.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="ENTRY=VALUE", help="Change an entry, such as data.path=DIR (repeatable)."),
]
BackendOption = Annotated[
    str, typer.Option("--backend", help="native (INT4, on the CPU) or torch (fp32 in PyTorch; needs the extra torch).")
]


def _warn_of_threads(threads: int | None) -> int | None:
    if threads is not None and threads > (cores := allowed_cores()):
        print(
            f"mobilemoe: warning: --threads is {threads}, but this process may use {cores} "
            f"{'core' if cores == 1 else 'cores'}: no more threads than that will run",
            file=sys.stderr,
        )
    return threads


ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        callback=_warn_of_threads,
        help="Number of threads (default: one for each fast physical core that the process may use).",
    ),
]
MaxNewTokens = Annotated[int, typer.Option(help="Write at most this many tokens.")]


def memory(text: str) -> int:
    """The bytes that --max-memory names."""
    size = int(quantity("--max-memory", text, BYTES, "1.5GB or 900MB") or 0)
    if not 0 < size < 2**63:
        raise UsageError(f"--max-memory is {text!r}, but must be a size of memory, such as 1.5GB or 900MB")
    return size


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """A group of options: how the native engine computes (see `grouped`)."""

    activations: Annotated[
        str | None, typer.Option(help="int8 (default of the native backend) or fp32 (exact, but slow).")
    ] = None
    kv: Annotated[str | None, typer.Option(help="Format of the KV cache: int8, fp16 or fp32.")] = None
    threads: ThreadsOption = None
    quantize: Annotated[str | None, typer.Option(help="int4: round a BF16 model to INT4 while loading it.")] = None
    max_memory: Annotated[
        int | None,
        typer.Option(
            parser=memory,
            metavar="SIZE",
            help="The most memory that this process may come to have, such as 1GB: experts for which there is no room "
            "are read from the disk when they are needed.",
        ),
    ] = None
    speculate: Annotated[
        str | None,
        typer.Option(
            help="Guess tokens, which changes a text's speed alone: auto (the default: where it repeats itself, or by "
            "the model's draft head, while that pays), lookup or draft (always by one of them) or off."
        ),
    ] = None


_NEEDS = "is for {}: give one too, or leave it out"


@dataclass(frozen=True, kw_only=True)
class RoutingOptions:
    """A group of options: fields of `mobilemoe.Routing` (see `grouped`)."""

    experts_per_token: Annotated[
        int | None, typer.Option(metavar="K", help="Fewer experts for each token than the model's: faster, less good.")
    ] = None
    cache_prior: Annotated[
        float | None,
        typer.Option(
            metavar="LAMBDA",
            help="With --max-memory: prefer experts that are in memory, such as 0.1 to 0.5. What is written then "
            "depends on what was written before.",
        ),
    ] = None
    always_top: Annotated[
        int | None,
        typer.Option(metavar="J", help="With --cache-prior: take the J best experts anyway (default: half of them)."),
    ] = None
    capacity: Annotated[
        float | None,
        typer.Option(
            metavar="C",
            help="Of a prompt's work in routed experts do this share, up to 1, and skip what has the lowest weights.",
        ),
    ] = None

    def routing(self) -> Routing:
        if self.cache_prior is None:
            refuse_idle(_NEEDS.format("--cache-prior"), always_top=self.always_top)
        return Routing(**{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True, kw_only=True)
class MeasuredRoutingOptions(RoutingOptions):
    """The same, with what is of use for measuring only."""

    cached_experts: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="For --cache-prior: imitate a cache of N experts in each layer, instead of --max-memory."
        ),
    ] = None
    skip: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="What --capacity skips: pair (the default: the lowest weights), token (as V-MoE does) or random.",
        ),
    ] = None

    def routing(self) -> Routing:
        if self.cache_prior is None:
            refuse_idle(_NEEDS.format("--cache-prior"), cached_experts=self.cached_experts)
        if self.capacity is None:
            refuse_idle(_NEEDS.format("--capacity"), skip=self.skip)
        return super().routing()


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """A group of options: the fields of `mobilemoe.sampling.Sampling` (see `grouped`)."""

    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token; higher values vary more.")] = (
        0.0
    )
    top_k: Annotated[int, typer.Option(help="Sample from the k likeliest tokens (0: from all).")] = 0
    top_p: Annotated[
        float, typer.Option(help="Sample from the likeliest tokens that together have this probability (0 to 1).")
    ] = 1.0
    min_p: Annotated[
        float, typer.Option(help="Drop tokens below this fraction of the likeliest token's probability (0 to 1).")
    ] = 0.0
    repetition_penalty: Annotated[
        float, typer.Option(help="Above 1 makes tokens of the prompt and the answer less likely to be repeated.")
    ] = 1.0
    presence_penalty: Annotated[
        float, typer.Option(help="Subtracted from the logit of every token that the answer already has.")
    ] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="The same, once for each time that the answer has it.")] = 0.0
    seed: Annotated[int | None, typer.Option(help="A whole number that makes sampling repeatable.")] = None

    def warn_if_idle(self) -> None:
        """Says on standard error which options choose among tokens where temperature 0 leaves no choice."""
        given = {"top_k": self.top_k, "top_p": self.top_p < 1, "min_p": self.min_p, "seed": self.seed is not None}
        idle = [f"--{name.replace('_', '-')}" for name, is_given in given.items() if is_given]
        if self.temperature == 0 and idle:
            print(
                f"mobilemoe: warning: at temperature 0 the likeliest token is always taken, whatever {', '.join(idle)} "
                "may be: --temperature 0.7 would sample",
                file=sys.stderr,
            )


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """Lets a verb take groups of options: a parameter whose type is a dataclass becomes one option for each field."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(verb, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = group = parameter.annotation
            types = get_type_hints(group, include_extras=True)
            parameters += [
                inspect.Parameter(each.name, parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
                for each in fields(group)
            ]
        else:
            parameters.append(parameter.replace(kind=parameter.KEYWORD_ONLY))

    @wraps(verb)
    def with_options(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{each.name: values.pop(each.name) for each in fields(group)})
        verb(**values)

    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    with_options.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return with_options


def refuse_idle(why: str, **options: object) -> None:
    """Raises UsageError for the first option that is given, since it would do nothing: neither None nor False.

    why: what the option needs, such as "is for --suite".
    """
    for name, value in options.items():
        if value is not None and value is not False:
            raise UsageError(f"--{name.replace('_', '-')} {why}")


def load_model(
    name: str, backend: str, engine: EngineOptions | None = None, routing: RoutingOptions | None = None
) -> Model:
    """The model as these options want it; `mobilemoe.load` checks them."""
    options: dict[str, Any] = {} if engine is None else vars(engine)
    return mobilemoe.load(
        name,
        backend=cast(Literal["native", "torch"], backend),
        routing=None if routing is None else routing.routing(),
        **options,
    )


def plain_console(least_width: int = 0) -> Console:
    """A console for tables that prints names as they are, [brackets] and :colons: included.

    `least_width`: characters of a line, for rows that should stay whole even where the width of the terminal is
    unknown.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    console.width = max(console.width, least_width)
    return console


def read_recipe(path: Path, overrides: list[str] | None) -> Recipe:
    """The recipe with its `--set` changes; MissingExtraError where the packages that read recipes are not installed."""
    try:
        from mobilemoe.train.recipe import load_recipe
    except ModuleNotFoundError as missing:
        raise MissingExtraError(f"reading recipes ({missing.name})", "train") from None
    return load_recipe(path, tuple(overrides or ()))


def print_json(value: dict[str, Any]) -> None:
    """Prints one object on one line, for scripts. What JSON cannot express is null, and any encoding can carry the
    line.
    """
    utf8 = (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf8sig")
    print(json.dumps(_sayable(value), ensure_ascii=not utf8, allow_nan=False))


def _sayable(value: Any) -> Any:
    """The value with NaN and infinities replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _sayable(each) for name, each in value.items()}
    return [_sayable(each) for each in value] if isinstance(value, list | tuple) else value
