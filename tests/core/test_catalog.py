"""What is installed is described: who provides it, what it does, its paper, its ranges and defaults."""

import json

import pytest

from metaopt import plugins, tune
from metaopt.catalog import describe
from metaopt.errors import UserError
from metaopt.plugins import CONTRACTS

REGISTRY = plugins.load()
THINGS = [(kind, name) for kind in CONTRACTS for name in getattr(REGISTRY, kind)]


@pytest.mark.parametrize(("kind", "name"), THINGS)
def test_everything_that_plugins_provide_is_described(kind: str, name: str) -> None:
    cls = getattr(REGISTRY, kind)[name]
    found = describe(REGISTRY, name)
    assert (found["name"], found["kind"]) == (name, CONTRACTS[kind][0])
    assert found["plugin"] == REGISTRY.provider(cls).name
    assert found["about"], "its docstring"
    assert found["parameters"].keys() == tune.declared(cls.Config).keys()
    for field, parameter in found["parameters"].items():
        assert parameter["default"] == getattr(cls.Config(), field)
        assert (parameter["range"] == "a setting") == isinstance(tune.declared(cls.Config)[field], tune.Fixed)
    assert json.loads(json.dumps(found)).keys() == found.keys()


def test_a_learner_is_described_with_its_paper_ranges_and_shared_defaults() -> None:
    found = describe(REGISTRY, "protonet")
    assert (found["distribution"], found["plugin"]) == ("metaopt-fewshot", "metric")
    assert found["paper"] == "Prototypical networks (Snell, Swersky & Zemel, 2017, arXiv:1703.05175)."
    assert found["parameters"] == {
        "distance": {"range": "one of euclidean, cosine", "default": "euclidean"},
        "temperature": {"range": "0.01 to 100, log scale", "default": 1.0},
    }
    assert describe(REGISTRY, "reptile")["defaults"]["outer.optimizer"] == "sgd"


def test_a_setting_is_described_by_the_text_below_it_and_inherited_ones_come_last() -> None:
    parameters = describe(REGISTRY, "images")["parameters"]
    assert parameters["root"]["about"].startswith("A folder or a zip file: <class>/<picture>, with any superclasses")
    assert parameters["split"]["about"].startswith("Three percentages, such as 60/20/20")
    assert "about" not in parameters["validation"]
    names = list(parameters)
    assert names.index("follow_links") < names.index("split")


def test_what_has_no_paper_shows_none() -> None:
    assert describe(REGISTRY, "pixels")["paper"] is None


def test_a_plugin_is_described_by_what_it_provides() -> None:
    found = describe(REGISTRY, "objectives")
    about, _, names = found["about"].partition("\n\n")
    assert about == "Meta-objectives: scores of a learner, task by task."
    provided = names.split(", ")
    assert provided == sorted(provided)
    assert {"accuracy", "mse"} <= set(provided)
    assert (found["kind"], found["parameters"], found["distribution"]) == ("plugin, ok", {}, "metaopt-fewshot")


def test_an_unknown_name_is_answered_with_the_near_one_of_any_kind() -> None:
    for name, near in (
        ("protonett", "protonet"),
        ("glyph", "glyphs"),
        ("acuracy", "accuracy"),
        ("gradien", "gradient"),
    ):
        with pytest.raises(
            UserError, match=rf"^no plugin or thing provided by one named '{name}'; did you mean '{near}'"
        ):
            describe(REGISTRY, name)
