"""Device profiles: what one machine can do, in five constants, and from them the seconds of decoding and prefill.

    decode  = (weights + routed_cost * routed weights) / weight_bandwidth    + attention / attention_rate
    prefill = (linears + routed_cost * routed linears) / prefill_linear_rate + attention / prefill_attention_rate

Weights are bytes of INT4 that a token reads, the rest are FLOPs; all of them come from `accounting`. The profiles in
`devices` are fitted to the paper's phones (spec section 7); `mobilemoe profile device` measures the machine it runs on.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, overload

import numpy as np
from numpy.typing import NDArray

from mobilemoe import accounting
from mobilemoe.accounting import C, IntArray, Shape
from mobilemoe.config_rules import is_finite
from mobilemoe.errors import ConfigError, UsageError
from mobilemoe.files import read_toml, write_atomic
from mobilemoe.user_cache import usable_cache

Array = NDArray[np.float64]

_SHIPPED = Path(__file__).parent / "devices"
CONSTANTS = ("weight_bandwidth", "attention_rate", "prefill_linear_rate", "prefill_attention_rate", "routed_cost")
OPTIONAL = ("error", "process_weights", "process_kv", "flash_bandwidth")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True)
class Work(Generic[C]):
    """The work of one decoded token or of one prompt.

    `plain` and `routed` are bytes of weights in decoding and FLOPs of linear layers in prefill; `attention` is FLOPs
    of scores and values in both.
    """

    plain: C
    routed: C
    attention: C


def decode_work(shape: Shape[C], context: int) -> Work[C]:
    """The work of decoding one token that attends to `context` keys."""
    none = 0 * shape.num_local_experts
    routed = sum((part.int4_bytes * part.active // part.count for part in _routed_parts(shape)), start=none)
    attention = accounting.decode_flops(shape, context) - accounting.decode_flops(shape)
    return Work(plain=accounting.decode_bytes(shape) - routed, routed=routed, attention=attention)


def prefill_work(shape: Shape[C], tokens: int) -> Work[C]:
    """The work of a prompt of `tokens`; the output head runs for its last token only."""
    head = 2 * shape.vocab_size * shape.hidden_size
    linear = tokens * (accounting.decode_flops(shape) - head) + head
    none = 0 * shape.num_local_experts
    routed = 2 * tokens * sum((part.active_parameters for part in _routed_parts(shape)), start=none)
    return Work(plain=linear - routed, routed=routed, attention=accounting.prefill_flops(shape, tokens) - linear)


def _routed_parts(shape: Shape[C]) -> list[accounting.Part[C]]:
    return [part for part in accounting.parts(shape) if part.name.startswith("routed experts")]


@dataclass(frozen=True, kw_only=True)
class Device:
    """The constants of one machine at a number of threads: effective values, found by a fit.

    weight_bandwidth: bytes/s at which decoding reads INT4 weights. attention_rate: FLOP/s of scores and values when a
    single query meets the KV cache. prefill_linear_rate, prefill_attention_rate: FLOP/s of many tokens at once.
    routed_cost: the time for a routed expert's weight relative to any other weight's, because of routing, gathering
    and smaller products; 1 means no extra cost. Raises ConfigError for impossible values.

    What is not known is None. error: the largest relative error of predicted seconds for a measurement that the fit had
    not seen. process_weights, process_kv: bytes of the process for each byte of weights and of an int8 KV cache.
    flash_bandwidth: bytes/s at which missing experts are read from storage.
    """

    name: str
    threads: int
    weight_bandwidth: float
    attention_rate: float
    prefill_linear_rate: float
    prefill_attention_rate: float
    routed_cost: float
    source: str
    error: float | None = None
    process_weights: float | None = None
    process_kv: float | None = None
    flash_bandwidth: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if type(self.threads) is not int or self.threads < 1:
            raise ConfigError(f"{self.name}: threads is {self.threads!r}, but must be a whole number from 1 on")
        if not isinstance(self.source, str):
            raise ConfigError(f"{self.name}: source is {self.source!r}, but must be a text")
        for constant in CONSTANTS:
            value = getattr(self, constant)
            if not is_finite(value) or value <= 0:
                raise ConfigError(f"{self.name}: {constant} is {value!r}, but must be a positive, finite number")
        for name in ("process_weights", "process_kv", "flash_bandwidth"):
            value = getattr(self, name)
            if value is not None and not (is_finite(value) and value > 0):
                raise ConfigError(f"{self.name}: {name} is {value!r}, but must be a positive, finite number")
        if self.error is not None and not (is_finite(self.error) and 0 <= self.error < 1):
            raise ConfigError(f"{self.name}: error is {self.error!r}, but must be a number from 0 to below 1")
        if (self.process_weights is None) != (self.process_kv is None):
            raise ConfigError(f"{self.name}: process_weights and process_kv must be given together")

    @overload
    def decode_seconds(self, shape: Shape[int], context: int) -> float: ...
    @overload
    def decode_seconds(self, shape: Shape[IntArray], context: int) -> Array: ...
    def decode_seconds(self, shape: Any, context: int) -> Any:
        """Seconds for one token that attends to `context` keys."""
        work = decode_work(shape, context)
        weights = work.plain + self.routed_cost * work.routed
        return weights / self.weight_bandwidth + work.attention / self.attention_rate

    @overload
    def prefill_seconds(self, shape: Shape[int], tokens: int) -> float: ...
    @overload
    def prefill_seconds(self, shape: Shape[IntArray], tokens: int) -> Array: ...
    def prefill_seconds(self, shape: Any, tokens: int) -> Any:
        """Seconds to the first token after a prompt of `tokens`, once the model is loaded.

        An underestimate for prompts of a few tokens, which take as long as reading the weights.
        """
        work = prefill_work(shape, tokens)
        linears = work.plain + self.routed_cost * work.routed
        return linears / self.prefill_linear_rate + work.attention / self.prefill_attention_rate

    def process_bytes(self, weights: Any, kv: Any) -> Any:
        """Peak memory of the process that runs a model: of weights and KV cache in bytes, as numbers or arrays.

        Without a measurement it is their sum, which every process exceeds.
        """
        if self.process_weights is None or self.process_kv is None:
            return weights + kv
        return self.process_weights * weights + self.process_kv * kv

    def save(self, path: Path) -> None:
        """Writes the TOML file that `device` reads, atomically."""
        # Strings and numbers are written in TOML as in JSON.
        known = {name: value for name, value in vars(self).items() if value is not None}
        lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in known.items())
        write_atomic(path, "".join(lines))


def device(name_or_path: str | Path) -> Device:
    """Finds a device by name or .toml file: one that comes with mobilemoe, or one that `mobilemoe profile device`
    saved.

    Raises UsageError, which lists the known names, for an unknown name, and ConfigError for a file without a device.
    """
    if str(name_or_path).endswith(".toml"):
        return _read(Path(name_or_path))
    for path in _known():
        if path.stem == str(name_or_path):
            return _read(path)
    raise UsageError(
        f"there is no device {str(name_or_path)!r}: choose {', '.join(path.stem for path in _known())}, "
        "give a .toml file, or measure this machine with `mobilemoe profile device`"
    )


def saved_path(name: str) -> Path:
    """Where `mobilemoe profile device --name NAME` keeps its result.

    Raises OSError without a usable cache, ConfigError if `name` is not a valid name, UsageError if a device that comes
    with mobilemoe has it.
    """
    check_name(name)
    if (_SHIPPED / f"{name}.toml").exists():
        raise UsageError(f"a device {name} comes with mobilemoe: choose another name")
    return _saved() / f"{name}.toml"


def check_name(name: object) -> None:
    """ConfigError if a device cannot have this name."""
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ConfigError(f"a device's name is {name!r}, but must be of letters, digits, '.', '_' and '-'")


def _saved() -> Path:
    return usable_cache("devices")


def _known() -> list[Path]:
    """The files of all devices that can be named."""
    known = sorted(_SHIPPED.glob("*.toml"))
    with suppress(OSError):  # there may be no home folder
        known += sorted(_saved().glob("*.toml"))
    return known


def _read(path: Path) -> Device:
    values = read_toml(path, ConfigError)
    names = {entry.name for entry in fields(Device)}
    missing, unknown = sorted(names - values.keys() - {*OPTIONAL}), sorted(values.keys() - names)
    if missing or unknown:
        wrong = f"lacks {', '.join(missing)}" if missing else f"has the unknown {', '.join(unknown)}"
        raise ConfigError(f"{path} is no device: it {wrong}")
    try:
        return Device(**values)
    except ConfigError as fault:
        raise ConfigError(f"{path} is no device: {fault}") from None
