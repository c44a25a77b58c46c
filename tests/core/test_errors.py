"""A mistake is answered with the nearest name, or with all names that would do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt.errors import InputError, TrialError, UserError, unknown


@pytest.mark.parametrize(
    ("name", "near"),
    [("protonett", "protonet"), ("Protonet", "protonet"), ("prototnet", "protonet"), ("mamml", "maml")],
)
def test_a_misspelt_name_is_answered_with_the_near_one(name: str, near: str) -> None:
    assert unknown("learner", name, ["protonet", "maml"]) == f"no learner named {name!r}; did you mean {near!r}?"


def test_a_name_near_to_none_is_answered_with_all_in_order() -> None:
    assert unknown("key", "zzz", {"trials": 1, "budget": 2}) == "no key named 'zzz'; choose one of: budget, trials"


def test_where_there_is_nothing_to_choose_it_says_so() -> None:
    assert unknown("learner", "maml", []) == "no learner named 'maml'; choose one of: (none)"


@given(st.one_of(st.text(), st.integers(), st.none(), st.lists(st.text())), st.sets(st.text(alphabet="abcdef")))
def test_any_name_is_answered_in_one_line_that_holds_it(name: object, allowed: set[str]) -> None:
    message = unknown("key", name, allowed)
    assert message.startswith(f"no key named {str(name)!r}; ")
    assert len(message.splitlines()) == 1


def test_a_users_mistake_is_no_failure_of_a_trial_and_the_other_way_round() -> None:
    assert not issubclass(UserError, TrialError | ValueError)
    assert not issubclass(TrialError, UserError | ValueError)


@pytest.mark.parametrize("breaks", ["\n", "\r\n", "\x0b", "\x1e", "\x85", "\u2028"])
def test_a_users_mistake_is_told_in_one_line_whatever_breaks_a_name_brings(breaks: str) -> None:
    said = str(UserError(f"t.csv: no column named 'label'; choose one of: la{breaks}bel"))
    assert said == "t.csv: no column named 'label'; choose one of: la bel"
    assert str(InputError(f"a{breaks}b")) == "a b"
