"""Declare a hyperparameter in one line: its type, range, scale and default.

    @dataclass(frozen=True)
    class Config:
        inner_lr: float = tune.real(0.001, 1.0, log=True, default=0.1)
        inner_steps: int = tune.integer(1, 10, default=5)
        first_order: bool = tune.choice(False, True)
        momentum: float = tune.real(0.0, 0.99, default=0.9, when={"first_order": True})
        root: str = ""  # a plain field is a setting: a study may set it, and never searches it

A hyperparameter with `when` is searched only where the fields declared before it have the values named, and keeps its
default elsewhere. A study file may fix a hyperparameter or narrow its range, never widen it.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Value = bool | int | float | str | None


class Trial(Protocol):
    """The part of an Optuna trial that parameters use."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_categorical(self, name: str, choices: Sequence[Value]) -> Value: ...


@dataclass(frozen=True)
class Real:
    """A real number in [low, high], searched on a linear or a logarithmic scale."""

    low: float
    high: float
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}{', log scale' if self.log else ''}"

    def check(self, value: object) -> float:
        """Return `value` as a float of this range. ValueError says the law it breaks."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is not a number; the declared range is {self}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is outside the declared range ({self})")
        return float(value)

    def suggest(self, trial: Trial, name: str) -> float:
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def nearest(self, value: Any) -> float:
        return min(max(float(value), self.low), self.high)


@dataclass(frozen=True)
class Integer:
    """A whole number in [low, high], searched on a linear or a logarithmic scale."""

    low: int
    high: int
    log: bool = False

    def __str__(self) -> str:
        return f"{self.low} to {self.high}, whole{', log scale' if self.log else ''}"

    def check(self, value: object) -> int:
        """Return `value` as an int of this range. ValueError says the law it breaks."""
        if isinstance(value, bool) or not isinstance(value, int | float) or value % 1 != 0:
            raise ValueError(f"{value!r} is not a whole number; the declared range is {self}")
        if not self.low <= value <= self.high:
            raise ValueError(f"{value!r} is outside the declared range ({self})")
        return int(value)

    def suggest(self, trial: Trial, name: str) -> int:
        return trial.suggest_int(name, self.low, self.high, log=self.log)

    def nearest(self, value: Any) -> int:
        return min(max(int(value), self.low), self.high)


@dataclass(frozen=True)
class Choice:
    """One of a few values, without order."""

    options: tuple[Value, ...]
    transductive: tuple[Value, ...] = ()

    def __str__(self) -> str:
        return "one of " + ", ".join(map(str, self.options))

    def check(self, value: object) -> Value:
        """Return `value` as one of the options. ValueError names them."""
        for option in self.options:
            if option == value and isinstance(option, bool) == isinstance(value, bool):
                return option
        raise ValueError(f"{value!r} is not an option; it must be {self}")

    def suggest(self, trial: Trial, name: str) -> Value:
        return trial.suggest_categorical(name, self.options)

    def nearest(self, value: Any) -> Value:
        return value if value in self.options else self.options[0]


@dataclass(frozen=True)
class Fixed:
    """A value that is not searched: a setting, or a range that the study file fixed."""

    value: Any

    def __str__(self) -> str:
        return f"fixed at {self.value}"

    def suggest(self, trial: Trial, name: str) -> Any:
        return self.value

    def nearest(self, value: Any) -> Any:
        return self.value


Range = Real | Integer | Choice
Parameter = Range | Fixed


When = Mapping[str, Value]


def real(low: float, high: float, *, log: bool = False, default: float, when: When | None = None) -> Any:
    """A field holding a real number in [low, high]; `log` searches its logarithm."""
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (log and low <= 0):
        raise ValueError(f"tune.real({low}, {high}, log={log}): needs low < high, finite, and low > 0 on a log scale")
    return _field(Real(float(low), float(high), log), default, when)


def integer(low: int, high: int, *, log: bool = False, default: int, when: When | None = None) -> Any:
    """A field holding a whole number in [low, high]; `log` searches its logarithm."""
    if low >= high or (log and low <= 0):
        raise ValueError(f"tune.integer({low}, {high}, log={log}): needs low < high, and low > 0 on a log scale")
    return _field(Integer(low, high, log), default, when)


def choice(*options: Value, when: When | None = None, transductive: tuple[Value, ...] = ()) -> Any:
    """A field holding one of `options`; the first is the default.

    `transductive` names the options under which the prediction for one query depends on the others; they are there
    only for studies that say `transductive: true`.
    """
    if len(options) < 2 or len(set(options)) < len(options) or options[0] in transductive:
        raise ValueError(f"tune.choice{options}: needs two options or more, all different, an inductive one first")
    return _field(Choice(options, transductive), options[0], when)


def _field(declared: Range, default: Value, when: When | None) -> Any:
    return dataclasses.field(default=declared.check(default), metadata={"tune": declared, "when": when or {}})


def declared(config: type) -> dict[str, Parameter]:
    """Return what `config`, a frozen dataclass, declares by name; a plain field is `Fixed` at its default."""
    return {
        field.name: field.metadata.get("tune", Fixed(field.default))
        for field in dataclasses.fields(config)  # a config whose field has no default is refused by its plugin's loader
    }


def conditions(config: type) -> dict[str, When]:
    """Return, by name, what must hold for a field of `config` to be searched."""
    return {field.name: field.metadata.get("when", {}) for field in dataclasses.fields(config)}


def extremes(section: Mapping[str, Parameter]) -> Iterator[dict[str, Any]]:
    """Yield {field: value} for both ends of every range, each option and each fixed value of a section."""
    for field, parameter in section.items():
        match parameter:
            case Choice(options):
                values: tuple[Value, ...] = options
            case Fixed(value):
                values = (value,)
            case _:
                values = (parameter.low, parameter.high)
        yield from ({field: value} for value in values)


def narrow(parameter: Parameter, given: object) -> Parameter:
    """Return `parameter` as a study file narrows it.

    `given` is None (the declared range), a value (fixed), a list of values (a choice among them), or
    `{low, high}`, either of which may be left out. ValueError says the law that `given` breaks.
    """
    if isinstance(parameter, Fixed):
        return Fixed(_setting(parameter.value, given))
    if given is None:
        return parameter
    if isinstance(given, list):
        if not given:
            raise ValueError(f"an empty list leaves nothing to choose; it must hold values that are {parameter}")
        options = tuple(dict.fromkeys(parameter.check(item) for item in given))
        return Choice(options, getattr(parameter, "transductive", ())) if len(options) > 1 else Fixed(options[0])
    if not isinstance(given, Mapping):
        return Fixed(parameter.check(given))
    if isinstance(parameter, Choice):
        raise ValueError(f"a range means nothing here; give one value or a list of values that are {parameter}")
    if extra := given.keys() - {"low", "high"}:
        raise ValueError(f"unknown key {sorted(map(str, extra))[0]!r}; a range is written {{low: …, high: …}}")
    low, high = parameter.check(given.get("low", parameter.low)), parameter.check(given.get("high", parameter.high))
    if low > high:
        raise ValueError(f"low ({low:g}) is above high ({high:g})")
    return Fixed(low) if low == high else type(parameter)(low, high, parameter.log)  # type: ignore[arg-type]


def _setting(default: Any, given: object) -> Any:
    """Return `given` if it is of the kind of a setting's default."""
    if default is None or given is None:
        return given
    if isinstance(default, float) and isinstance(given, int) and not isinstance(given, bool):
        try:
            return float(given)
        except OverflowError:
            raise ValueError("this number is too large to compute with; give a smaller one") from None
    kind = tuple if isinstance(default, tuple) else type(default)
    if kind is tuple and isinstance(given, list):
        return tuple(given)
    if not isinstance(given, kind) or isinstance(given, bool) != isinstance(default, bool):
        raise ValueError(f"{given!r} is not {_KINDS[kind]}, as its default {default!r} is")
    return given


def kind(value: object) -> str:
    """Return what a setting with this default holds: a text, a number, …"""
    return _KINDS.get(type(value), "any value")


_KINDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    tuple: "a list",
    dict: "a mapping",
}
