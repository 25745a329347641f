"""A law with constants: the loss that it predicts, with an interval, and the domain where it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from mobilemoe.errors import DataError, MobileMoEError, UsageError
from mobilemoe.files import read_json, write_json
from mobilemoe.presets import DENSE, FAMILY_KNOBS
from mobilemoe.scaling.law.domain import Hull, within
from mobilemoe.scaling.law.forms import Form, form_named, in_units
from mobilemoe.scaling.law.runs import BILLION, FIELDS, Points

Array = NDArray[np.float64]

VALUES_AT_ONCE = 2**22  # of samples times points, so that an interval over many points stays small
UNITS = {"n_active": "B", "tokens": "B"}
VERSION = 2  # of the file; 1 had no version and no hull


@dataclass(frozen=True, kw_only=True)
class Law:
    """A form of `forms.FORMS` with constants; UsageError if they are not the form's.

    Units: loss in nats a token, n_active and tokens in 1e9.
    """

    form: str
    parameters: dict[str, float]
    rmse: float  # of the fit, nats a token
    domain: dict[str, tuple[float, float]]  # column -> lowest and highest value in the runs behind it
    source: str  # where the constants come from
    hull: Hull | None = None  # of the runs' (N, D) within those ranges; None: not known, or all of the ranges
    samples: Array | None = None  # [S, P]: bootstrap draws of the parameters, in the form's order
    prior: str = ""  # what in it is assumed and not measured
    weak_prior: str = ""  # of the samples; it vanishes where runs are many or precise
    counts_embedding: bool | None = None  # does n_active count the embedding? None: unknown
    # Of held-out runs that a fit to the others predicts, in nats a token; None: not tried. And which runs those were.
    forecast_rmse: float | None = None
    forecast_split: str = ""
    left_out: tuple[str, ...] = ()  # runs left out of the fit, since they were far from a fit to all
    with_outliers: dict[str, float] | None = None  # the parameters of that fit to all

    def __post_init__(self) -> None:
        names = self._form.parameters
        if {*self.parameters} != {*names}:
            raise UsageError(f"the law {self.form!r} has the parameters {', '.join(names)}, not {[*self.parameters]}")
        if not np.all(np.isfinite([*self.parameters.values(), self.rmse, self.forecast_rmse or 0.0])):
            raise UsageError(f"the law {self.form!r} has a parameter or an RMSE that is not a number")
        if self.samples is not None and (self.samples.ndim != 2 or self.samples.shape[1] != len(names)):
            raise UsageError(f"samples have the shape {self.samples.shape}, but must be [S, {len(names)}]")
        if unknown := self.domain.keys() - {*FIELDS}:
            raise UsageError(f"the domain names {sorted(unknown)[0]!r}, which is none of {', '.join(FIELDS)}")
        if self.hull is not None and not (
            len(self.hull) >= 2
            and all(len(corner) == 2 and np.all(np.isfinite(corner)) for corner in self.hull)
            and min(map(min, self.hull)) > 0
        ):
            raise UsageError("the hull must have at least two corners (N, D), each of two numbers above 0")

    def check(self) -> None:
        """DataError unless the law and all its samples give a finite loss at the ends of its domain."""
        low, high = ([self.domain.get(name, (1.0, 1.0))[end] for name in FIELDS] for end in (0, 1))
        ends = Points(**dict(zip(FIELDS, np.array([low, high], np.float64).T, strict=True)))
        thetas = self.theta[None] if self.samples is None else np.vstack([self.theta, self.samples])
        with np.errstate(all="ignore"):
            losses = self._form.loss(thetas, ends)
        if not np.all(np.isfinite(losses)):
            raise DataError("with its parameters there is no loss at the ends of its domain")

    @property
    def _form(self) -> Form:
        return form_named(self.form)

    @property
    def formula(self) -> str:
        return self._form.formula

    @property
    def theta(self) -> Array:
        """The parameters as an array, in the form's order."""
        return np.array([self.parameters[name] for name in self._form.parameters])

    def loss(self, points: Points) -> Array:
        """Nats a token at `points`, in their shape; `outside` says where that is extrapolation."""
        return self._form.loss(self.theta, points)

    @property
    def interval_kind(self) -> str:
        """What `interval` is based on: "bootstrap", or "RMSE of the fit" where there are no samples."""
        return "RMSE of the fit" if self.samples is None else "bootstrap"

    def interval(self, points: Points, level: float = 0.9) -> tuple[Array, Array]:
        """The interval of the law's loss at `points` with probability `level`; without samples the loss -/+ the RMSE.

        It is the interval of the curve, and not of one more run, which scatters around the curve by the RMSE.
        """
        if not 0 < level < 1:
            raise UsageError(f"level is {level}, but must lie between 0 and 1")
        if self.samples is None:
            loss = self.loss(points)
            return loss - self.rmse, loss + self.rmse
        flat = Points(**{name: getattr(points, name).ravel() for name in FIELDS})
        ends = [(1 - level) / 2, (1 + level) / 2]
        size = max(1, VALUES_AT_ONCE // len(self.samples))
        bands = [
            np.quantile(self._form.loss(self.samples, flat.at(slice(start, start + size))), ends, axis=0)
            for start in range(0, len(flat), size)
        ]
        low, high = np.concatenate(bands, axis=1).reshape(2, *points.shape)
        return low, high

    def parameter_interval(self, name: str, level: float = 0.9) -> tuple[float, float] | None:
        """The parameter's interval with probability `level`; None without samples."""
        if self.samples is None:
            return None
        draws = self.samples[:, self._form.parameters.index(name)]
        low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def outside(self, points: Points) -> list[str]:
        """One sentence for each column in which points leave the domain, and one for those whose N and D are in their
        ranges but not together in the hull; empty if all points are inside.
        """
        return [*self._leaving(points), *self._beside_the_hull(points)]

    def covers(self, points: Points) -> NDArray[np.bool_]:
        """For each point, whether its N and D lie in the domain; E, g and s are not looked at."""
        inside = self._in_ranges(points)
        return inside if self.hull is None else inside & within(self.hull, points)

    def _in_ranges(self, points: Points) -> NDArray[np.bool_]:
        inside = np.ones(points.shape, bool)
        for column in {"n_active", "tokens"} & self.domain.keys():
            (low, high), values = self.domain[column], getattr(points, column)
            inside &= (values >= low * (1 - 1e-9)) & (values <= high * (1 + 1e-9))
        return inside

    def _beside_the_hull(self, points: Points) -> Iterator[str]:
        beside = self._in_ranges(points) & ~self.covers(points)
        if not beside.any():
            return
        n, d = points.n_active[beside].ravel()[0], points.tokens[beside].ravel()[0]
        others = f" (and {beside.sum() - 1} more)" if beside.sum() > 1 else ""
        yield (
            f"n_active {n:g}B with tokens {d:g}B{others} is in the ranges, but outside the hull of N and D of the runs "
            "behind the law, which had no such pair: what it says there is extrapolation and may rank wrongly"
        )

    def _leaving(self, points: Points) -> Iterator[str]:
        for column, (low, high) in self.domain.items():
            values = getattr(points, column)
            slack = 1e-9 * max(abs(low), abs(high))
            beyond = values[(values < low - slack) | (values > high + slack)]
            if beyond.size:
                unit = UNITS.get(column, "")
                found = f"{beyond.min():g}{unit}"
                if beyond.min() != beyond.max():
                    found += f" to {beyond.max():g}{unit}"
                yield (
                    f"{column} is {found}, outside the {low:g}{unit} to {high:g}{unit} of the runs behind the law: "
                    "what it says there is extrapolation and may rank wrongly"
                )

    def known(self, column: str, values: Sequence[int]) -> tuple[int, ...]:
        """Those of `values` that the law can choose among: inside its domain, if it has a term for `column`.

        For a column without a term only one value is known: that of its runs, or else the family's, or, for a law
        without any such term, that of dense models.
        """
        low, high = self.domain.get(column, (0.0, np.inf))
        columns = self._form.columns
        if column in columns or low == high:
            return tuple(value for value in values if low <= value <= high)
        return (FAMILY_KNOBS[column] if columns or column != "experts" else DENSE[0],)

    def plain_counts(self) -> dict[str, float]:
        """The parameters for N and D in plain counts, as Chinchilla's are usually given."""
        changed = in_units(self.theta, self._form, 1 / BILLION, 1 / BILLION)
        return dict(zip(self._form.parameters, map(float, changed), strict=True))

    def as_json(self) -> dict[str, Any]:
        """The law as JSON values, which `from_json` reads. Samples keep seven digits."""
        values = {"version": VERSION} | {item.name: getattr(self, item.name) for item in fields(self)}
        values["parameters"] = dict(self.parameters)
        values["domain"] = {column: list(ends) for column, ends in self.domain.items()}
        values["left_out"] = list(self.left_out)
        values["hull"] = None if self.hull is None else [list(corner) for corner in self.hull]
        if self.samples is not None:
            values["samples"] = [[float(f"{value:.7g}") for value in row] for row in self.samples]
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The law from JSON values of this version or an older one; UsageError or DataError if they are no law's."""
        if (version := values.get("version", 1)) not in range(1, VERSION + 1):
            raise DataError(f"its version is {version!r}, but this mobilemoe reads up to {VERSION}")
        known = {item.name for item in fields(cls)}
        if missing := {"form", "parameters", "rmse", "domain", "source"} - values.keys():
            raise DataError(f"a law needs the entry {sorted(missing)[0]!r}")
        try:
            domain = {column: (float(low), float(high)) for column, (low, high) in values["domain"].items()}
            numbers = {name: float(value) for name, value in values["parameters"].items()}
            hull = values.get("hull")
            corners = None if hull is None else tuple((float(n), float(d)) for n, d in hull)
            left_out = tuple(map(str, values.get("left_out") or ()))
            whole = values.get("with_outliers")
            with_outliers = None if whole is None else {name: float(value) for name, value in whole.items()}
            samples = values.get("samples")
            drawn = None if samples is None else np.array(samples, np.float64)
            rmse = float(values["rmse"])
            forecast = values.get("forecast_rmse")
            forecast_rmse = None if forecast is None else float(forecast)
        except (TypeError, ValueError, AttributeError) as fault:
            raise DataError(f"a law has an entry that is no number: {fault}") from None
        rest = {name: values[name] for name in known & values.keys()}
        read = {"domain": domain, "parameters": numbers, "samples": drawn, "rmse": rmse, "forecast_rmse": forecast_rmse}
        return cls(**rest | read | {"hull": corners, "left_out": left_out, "with_outliers": with_outliers})

    def save(self, path: Path | str) -> None:
        """Writes the law as JSON, atomically."""
        write_json(path, self.as_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Reads a law that `save` or `mobilemoe fit --out` wrote; DataError if the file holds none."""
        try:
            law = cls.from_json(read_json(path, DataError))
            law.check()
            return law
        except MobileMoEError as fault:
            raise fault if str(path) in str(fault) else DataError(f"{path} is not a law: {fault}") from None
