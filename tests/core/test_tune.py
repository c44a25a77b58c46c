"""Hyperparameters keep their declared ranges: a study narrows them and never widens them."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest  # type: ignore[import-untyped]

from metaopt import tune
from metaopt.tune import Choice, Fixed, Integer, Parameter, Range, Real, narrow

FINITE = st.floats(-1e6, 1e6)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ANYTHING = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["low", "high", "x"]) | PLAIN, inner),
    max_leaves=6,
)
OPTIONS = st.lists(st.sampled_from(["adam", "sgd", "", None, True, 0.5, 7]), min_size=2, unique=True)


@st.composite
def reals(draw: st.DrawFn) -> Real:
    log = draw(st.booleans())
    low, high = sorted(draw(st.lists(st.floats(1e-6, 1e6) if log else FINITE, min_size=2, max_size=2, unique=True)))
    return Real(low, high, log)


@st.composite
def integers(draw: st.DrawFn) -> Integer:
    log = draw(st.booleans())
    bounds = st.lists(st.integers(1 if log else -1000, 1000), min_size=2, max_size=2, unique=True)
    low, high = sorted(draw(bounds))
    return Integer(low, high, log)


RANGES = reals() | integers() | OPTIONS.map(lambda options: Choice(tuple(options), tuple(options[1:2])))


def values(parameter: Range) -> st.SearchStrategy[Any]:
    """Values that the range allows."""
    match parameter:
        case Real():
            return st.floats(parameter.low, parameter.high)
        case Integer():
            return st.integers(parameter.low, parameter.high)
        case Choice():
            return st.sampled_from(parameter.options)


@st.composite
def narrowings(draw: st.DrawFn) -> tuple[Range, object]:
    """A range, and what a study file may give for it."""
    parameter = draw(RANGES)
    inside = values(parameter)
    forms: list[st.SearchStrategy[Any]] = [st.none(), inside, st.lists(inside, min_size=1, max_size=4)]
    if not isinstance(parameter, Choice):
        pairs = st.tuples(inside, inside).map(sorted)
        forms.append(pairs.map(lambda pair: {"low": pair[0], "high": pair[1]}))
        forms += [inside.map(lambda low: {"low": low}), inside.map(lambda high: {"high": high}), st.just({})]
    return parameter, draw(st.one_of(forms))


def allows(parameter: Parameter, value: object) -> bool:
    if isinstance(parameter, Fixed):
        return bool(parameter.value == value) and isinstance(parameter.value, bool) == isinstance(value, bool)
    try:
        parameter.check(value)
    except ValueError:
        return False
    return True


def written(parameter: Parameter) -> object:
    match parameter:
        case Fixed(None):
            return [None]  # None alone stands for the whole range
        case Fixed(value):
            return value
        case Choice():
            return list(parameter.options)
        case _:
            return {"low": parameter.low, "high": parameter.high}


def study(seed: int = 0) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))


# What hypothesis shows of every range


@given(narrowings(), ANYTHING, st.data())
def test_narrowing_never_widens(case: tuple[Range, object], stranger: object, data: st.DataObject) -> None:
    parameter, given = case
    narrowed = narrow(parameter, given)
    for value in (stranger, data.draw(values(parameter))):
        assert allows(parameter, value) or not allows(narrowed, value)


@given(narrowings(), st.integers(0, 99))
@settings(deadline=None)
def test_a_suggested_value_lies_in_the_declared_and_in_the_narrowed_range(
    case: tuple[Range, object], seed: int
) -> None:
    parameter, given = case
    narrowed = narrow(parameter, given)
    value = narrowed.suggest(study(seed).ask(), "x")
    assert allows(parameter, value)
    assert allows(narrowed, value)


@given(narrowings())
def test_narrowing_to_the_same_again_changes_nothing(case: tuple[Range, object]) -> None:
    narrowed = narrow(*case)
    assert narrow(narrowed, narrowed.value if isinstance(narrowed, Fixed) else written(narrowed)) == narrowed
    assert narrow(case[0], written(narrowed)) == narrowed


@given(narrowings(), st.data())
def test_a_default_is_moved_into_the_narrowed_range_and_left_alone_inside_it(
    case: tuple[Range, object], data: st.DataObject
) -> None:
    parameter, given = case
    narrowed, default = narrow(parameter, given), data.draw(values(parameter))
    moved = narrowed.nearest(default)
    assert allows(narrowed, moved)
    assert narrowed.nearest(moved) == moved
    if allows(narrowed, default):
        assert moved == default
    if isinstance(narrowed, Real | Integer):
        bounds = (narrowed.low, narrowed.high)
        assert abs(moved - default) == min(abs(bound - default) for bound in (*bounds, moved))


@given(RANGES | st.sampled_from([Fixed(0.5), Fixed(3), Fixed(""), Fixed(()), Fixed(True), Fixed(None)]), ANYTHING)
def test_whatever_a_study_gives_is_taken_or_refused_in_one_line(parameter: Parameter, given: object) -> None:
    try:
        narrow(parameter, given)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


# What each kind of range checks


@pytest.mark.parametrize("parameter", [Real(0.0, 2.0), Integer(0, 2), Choice((0, 1))])
def test_booleans_are_not_numbers(parameter: Range) -> None:
    for value in (True, False):
        with pytest.raises(ValueError, match=f"^{value} is not "):
            parameter.check(value)
    for number in (0, 1):
        with pytest.raises(ValueError, match=f"^{number} is not an option; it must be one of False, True$"):
            Choice((False, True)).check(number)


@pytest.mark.parametrize(
    ("parameter", "value", "law"),
    [
        (Real(0.001, 1.0, log=True), 1e-6, "1e-06 is outside the declared range (0.001 to 1, log scale)"),
        (Real(0.0, 1.0), 2, "2 is outside the declared range (0 to 1)"),
        (Real(0.0, 1.0), math.nan, "nan is outside the declared range (0 to 1)"),
        (Real(0.0, 1.0), "1e-3", "'1e-3' is not a number; the declared range is 0 to 1"),
        (Real(0.0, 1.0), [0.5], "[0.5] is not a number; the declared range is 0 to 1"),
        (Integer(1, 10), 11, "11 is outside the declared range (1 to 10, whole)"),
        (Integer(1, 64, log=True), 0, "0 is outside the declared range (1 to 64, whole, log scale)"),
        (Integer(1, 10), 2.5, "2.5 is not a whole number; the declared range is 1 to 10, whole"),
        (Integer(1, 10), math.inf, "inf is not a whole number; the declared range is 1 to 10, whole"),
        (Integer(1, 10), math.nan, "nan is not a whole number; the declared range is 1 to 10, whole"),
        (Integer(1, 10), None, "None is not a whole number; the declared range is 1 to 10, whole"),
        (Choice(("adam", "sgd")), "adma", "'adma' is not an option; it must be one of adam, sgd"),
        (Choice((None, 1)), "None", "'None' is not an option; it must be one of None, 1"),
    ],
)
def test_a_refused_value_is_named_with_the_law_it_breaks(parameter: Range, value: object, law: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(law)}$"):
        parameter.check(value)


@pytest.mark.parametrize(
    ("parameter", "value", "is_"),
    [(Real(0, 2), 1, 1.0), (Integer(0, 2), 1.0, 1), (Choice((1, "a")), 1.0, 1), (Choice((False, True)), True, True)],
)
def test_a_number_is_taken_as_the_range_holds_it(parameter: Range, value: object, is_: object) -> None:
    checked = parameter.check(value)
    assert (checked, type(checked)) == (is_, type(is_))


@pytest.mark.parametrize(
    ("parameter", "given", "law"),
    [
        (Real(0.0, 1.0), {"low": 0.5, "high": 0.2}, "low (0.5) is above high (0.2)"),
        (Real(0.0, 1.0), {"low": -1}, "-1 is outside the declared range (0 to 1)"),
        (Real(0.0, 1.0), {"high": 1.5}, "1.5 is outside the declared range (0 to 1)"),
        (Real(0.0, 1.0), {"low": None}, "None is not a number; the declared range is 0 to 1"),
        (Real(0.0, 1.0), {"min": 0.1}, "unknown key 'min'; a range is written {low: …, high: …}"),
        (Real(0.0, 1.0), [], "an empty list leaves nothing to choose; it must hold values that are 0 to 1"),
        (Real(0.0, 1.0), [0.5, 3], "3 is outside the declared range (0 to 1)"),
        (Choice(("a", "b")), {"low": "a"}, "a range means nothing here; give one value or a list of values that are "
                                           "one of a, b"),
        (Fixed(""), 3, "3 is not a text, as its default '' is"),
        (Fixed(3), 2.5, "2.5 is not a whole number, as its default 3 is"),
        (Fixed(3), True, "True is not a whole number, as its default 3 is"),
        (Fixed(0.5), False, "False is not a number, as its default 0.5 is"),
        (Fixed(False), 1, "1 is not true or false, as its default False is"),
        (Fixed((1, 2)), "ab", "'ab' is not a list, as its default (1, 2) is"),
        (Fixed(0.5), 10**400, "this number is too large to compute with; give a smaller one"),
    ],
)  # fmt: skip
def test_a_refused_narrowing_names_the_law_it_breaks(parameter: Parameter, given: object, law: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(law)}$"):
        narrow(parameter, given)


@pytest.mark.parametrize(
    ("parameter", "given", "narrowed"),
    [
        (Real(0.1, 1.0, log=True), None, Real(0.1, 1.0, log=True)),
        (Real(0.1, 1.0, log=True), {"low": 0.2}, Real(0.2, 1.0, log=True)),
        (Real(0.1, 1.0, log=True), {}, Real(0.1, 1.0, log=True)),
        (Real(0.1, 1.0), {"low": 0.5, "high": 0.5}, Fixed(0.5)),
        (Real(0.1, 1.0), 1, Fixed(1.0)),
        (Real(0.1, 1.0), [0.5, 0.1, 0.5], Choice((0.5, 0.1))),
        (Integer(1, 9, log=True), {"high": 4}, Integer(1, 4, log=True)),
        (Integer(1, 9), [3], Fixed(3)),
        (Choice(("a", "b", "c"), ("c",)), ["c", "a"], Choice(("c", "a"), ("c",))),
        (Choice((True, None)), None, Choice((True, None))),
        (Fixed(2), 3, Fixed(3)),
        (Fixed(0.5), 3, Fixed(3.0)),
        (Fixed(()), [1, 2], Fixed((1, 2))),
        (Fixed("a"), None, Fixed(None)),
        (Fixed(None), "anything", Fixed("anything")),
    ],
)
def test_a_study_fixes_or_narrows(parameter: Parameter, given: object, narrowed: Parameter) -> None:
    found = narrow(parameter, given)
    assert found == narrowed
    assert type(getattr(found, "value", None)) is type(getattr(narrowed, "value", None))


# What is suggested


@pytest.mark.parametrize("log", [False, True])
def test_a_real_number_is_searched_uniformly_on_its_scale(log: bool) -> None:
    parameter, search = Real(0.01, 10.0, log), study()
    scale = math.log if log else float
    low, high = scale(parameter.low), scale(parameter.high)
    drawn = [(scale(parameter.suggest(search.ask(), "x")) - low) / (high - low) for _ in range(500)]
    assert kstest(drawn, "uniform").pvalue > 0.01
    other = math.exp if log else math.log  # the test has the power to tell the scales apart
    assert kstest([(other(x + 1) - other(1)) / (other(2) - other(1)) for x in drawn], "uniform").pvalue < 0.01


def test_only_what_may_vary_is_asked_of_a_trial() -> None:
    trial = study().ask()
    assert Fixed([1, 2]).suggest(trial, "fixed") == [1, 2]
    Choice(("a", "b")).suggest(trial, "choice")
    Integer(1, 3).suggest(trial, "integer")
    assert trial.params.keys() == {"choice", "integer"}


# What a plugin declares


@dataclass(frozen=True)
class Config:
    optimizer: str = tune.choice("adam", "sgd", "lbfgs", transductive=("lbfgs",))
    lr: float = tune.real(1e-4, 0.1, log=True, default=1e-3, when={"optimizer": "adam"})
    steps: int = tune.integer(1, 10, default=5)
    momentum: float = tune.real(0, 1, default=1, when={"optimizer": "sgd", "steps": 5})
    root: str = "here"


def test_a_declaration_gives_range_default_and_condition() -> None:
    assert tune.declared(Config) == {
        "optimizer": Choice(("adam", "sgd", "lbfgs"), ("lbfgs",)),
        "lr": Real(1e-4, 0.1, log=True),
        "steps": Integer(1, 10),
        "momentum": Real(0.0, 1.0),
        "root": Fixed("here"),
    }
    assert Config() == Config("adam", 1e-3, 5, 1.0, "here")
    assert isinstance(Config().momentum, float)
    held: Mapping[str, tune.When] = tune.conditions(Config)
    assert held == {
        "optimizer": {},
        "lr": {"optimizer": "adam"},
        "steps": {},
        "momentum": {"optimizer": "sgd", "steps": 5},
        "root": {},
    }


@pytest.mark.parametrize(
    ("declare", "law"),
    [
        (lambda: tune.real(1, 1, default=1), "tune.real(1, 1, log=False): needs low < high, finite, and low > 0 on a"),
        (lambda: tune.real(2, 1, default=1), "tune.real(2, 1, log=False): needs low < high"),
        (lambda: tune.real(0, 1, log=True, default=1), "tune.real(0, 1, log=True): needs low < high"),
        (lambda: tune.real(0, math.inf, default=1), "tune.real(0, inf, log=False): needs low < high"),
        (lambda: tune.real(math.nan, 1, default=1), "tune.real(nan, 1, log=False): needs low < high"),
        (lambda: tune.real(0, 1, default=2), "2 is outside the declared range (0 to 1)"),
        (lambda: tune.real(0, 1, default=True), "True is not a number"),
        (lambda: tune.integer(1, 1, default=1), "tune.integer(1, 1, log=False): needs low < high"),
        (lambda: tune.integer(0, 9, log=True, default=1), "tune.integer(0, 9, log=True): needs low < high"),
        (lambda: tune.integer(1, 9, default=10), "10 is outside the declared range (1 to 9, whole)"),
        (lambda: tune.choice("a"), "tune.choice('a',): needs two options or more, all different, an inductive one"),
        (lambda: tune.choice("a", "b", "a"), "tune.choice('a', 'b', 'a'): needs two options or more, all different"),
        (lambda: tune.choice("a", "b", transductive=("a",)), "tune.choice('a', 'b'): needs two options or more, all "),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(declare: Any, law: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(law)}"):
        declare()
