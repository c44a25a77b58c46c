"""A study file is resolved into a study that stands for the same file, or refused in one sentence."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metaopt import plugins, tune
from metaopt.errors import UserError
from metaopt.study.file import KEYS, MAX_BYTES, Study, duration, load, override_key, read, resolve
from metaopt.train import Outer

REGISTRY = plugins.load()
GLYPHS = {"sampler": "glyphs", "n_way": 5, "n_shot": 1, "n_query": 15}
SINUSOID = {"sampler": "sinusoid", "n_shot": 5, "n_query": 10}

STUDY = """
name: a
tasks: {sampler: glyphs, n_way: 5, n_shot: 1, n_query: 15}
learners:
  protonet:
  maml: {inner_lr: {low: 0.01, high: 0.5}, inner_steps: 5}
encoder: conv4
outer: {lr: {low: 0.0003, high: 0.01}}
trials: 30
timeout: 2m
budget: {tasks: 4000}
evaluation: {tasks: 200, finalists: 3, report_tasks: 1000}
"""


def write(folder: Path, text: str | bytes, name: str = "a.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def resolved(text: str, *overrides: str) -> Study:
    raw = yaml.safe_load(text)
    for override in overrides:
        override_key(raw, override)
    return resolve(raw, "a.yaml", REGISTRY)


def refusal(folder: Path, text: str | bytes, *overrides: str, name: str = "a.yaml") -> str:
    """Return the one line with which a study file is refused, without the path that it must begin with."""
    path = write(folder, text, name)
    with pytest.raises(UserError) as refused:
        load(path, REGISTRY, overrides)
    message = str(refused.value)
    assert len(message.splitlines()) == 1
    assert str(path) in message
    return message.removeprefix(f"{path}: ")


# A study file and the study that it stands for


@st.composite
def sections(draw: st.DrawFn, config: type) -> dict[str, Any] | None:
    """What a study file may say of a learner, an encoder or the outer loop."""
    section: dict[str, Any] = {}
    for name, parameter in tune.declared(config).items():
        match parameter:
            case tune.Real(low, high):
                inside: st.SearchStrategy[Any] = st.floats(low, high)
            case tune.Integer(low, high):
                inside = st.integers(low, high)
            case tune.Choice(options, transductive):
                inside = st.sampled_from([option for option in options if option not in transductive])
            case _:
                continue
        forms = [st.none(), inside, st.lists(inside, min_size=1, max_size=3)]
        if not isinstance(parameter, tune.Choice):
            forms.append(st.tuples(inside, inside).map(sorted).map(lambda pair: {"low": pair[0], "high": pair[1]}))
        if draw(st.booleans()):
            section[name] = draw(st.one_of(forms))
    return section or None


@st.composite
def names(draw: st.DrawFn, classes: Mapping[str, Any]) -> Any:
    """A section that names learners or encoders: as one name, a list, or a mapping to what it says of each."""
    chosen = draw(st.lists(st.sampled_from(sorted(classes)), min_size=1, unique=True))
    form = draw(st.sampled_from(["name", "list", "mapping"]))
    if form == "name":
        return chosen[0]
    return chosen if form == "list" else {name: draw(sections(classes[name].Config)) for name in chosen}


@st.composite
def mappings(draw: st.DrawFn) -> dict[str, Any]:
    """A valid study file."""

    def at_least(low: int) -> st.SearchStrategy[int]:
        return st.integers(low, 10**6)

    kind = draw(st.sampled_from(["classification", "regression"]))
    shots = at_least(1) | st.lists(at_least(1), min_size=2, max_size=2, unique=True).map(sorted)
    sizes = {"n_query": at_least(1), "train_shot": shots, "train_query": at_least(1)}
    if kind == "classification":
        tasks = st.fixed_dictionaries(
            {"sampler": st.just("glyphs"), "n_way": at_least(2), "n_shot": shots},
            optional=sizes | {"size": at_least(8), "variation": st.floats(0, 2) | st.integers(0, 2)},
        )
    else:
        bounds = st.lists(st.floats(-5, 5), min_size=2, max_size=2).map(sorted)
        tasks = st.fixed_dictionaries(
            {"sampler": st.just("sinusoid"), "n_shot": shots},
            optional=sizes | {"n_way": st.just(1), "amplitude": bounds, "noise": st.floats(0, 1)},
        )
    able = {
        name: cls
        for name, cls in REGISTRY.learners.items()
        if kind in cls.kinds and not cls.transductive and cls.supports == "examples"
    }
    seconds = st.floats(1e-3, 1e6) | st.integers(1, 10**6) | st.sampled_from(["90s", "1.5h", "2 m", "1d", "7"])
    mapping = st.fixed_dictionaries(
        {"tasks": tasks, "learners": names(able)},
        optional={
            "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
            "encoder": names(REGISTRY.encoders),
            "outer": sections(Outer),
            "objective": st.just("accuracy" if kind == "classification" else "mse"),
            "search_on": st.sampled_from(["validation", "test"]),
            "transductive": st.booleans(),
            "trials": at_least(1),
            "timeout": seconds | st.none(),
            "budget": st.fixed_dictionaries({"tasks": at_least(1)}) | st.fixed_dictionaries({"cpu_seconds": seconds}),
            "evaluation": st.fixed_dictionaries({}, optional={"tasks": at_least(2), "finalists": at_least(1)}),
            "executor": st.sampled_from(["auto", "loop", "vmap"]),
            "seed": st.integers(0),
        },
    )
    sizes_of_memory = st.integers(10**6, 10**12) | st.sampled_from(["500MB", "1.5GB", "2 GB", "4T", "1000kB"])
    limits = st.fixed_dictionaries({}, optional={"time": seconds | st.none(), "memory": sizes_of_memory})
    isolated = st.fixed_dictionaries({"isolation": st.just("process")}, optional={"limits": limits})
    shared = st.fixed_dictionaries({}, optional={"isolation": st.just("none")})
    return draw(mapping) | draw(isolated | shared)


@given(mappings())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_resolved_study_is_the_study_of_its_own_file(
    tmp_path_factory: pytest.TempPathFactory, mapping: dict[str, Any]
) -> None:
    study = resolve(mapping, "a.yaml", REGISTRY)
    written = study.to_dict()
    assert written.keys() == set(KEYS) - {"prefer"}, "every default is written out; one objective needs no preference"
    assert resolve(written, "b.yaml", REGISTRY) == study
    path = write(tmp_path_factory.getbasetemp(), study.to_yaml())
    assert read(path) == written
    assert load(path, REGISTRY) == study


def test_what_a_study_file_leaves_out_is_resolved() -> None:
    study = resolved("{tasks: {sampler: glyphs, n_way: 5, n_shot: 2}, learners: [protonet, pixels]}")
    assert study.to_dict() == {
        "name": "a",
        "tasks": {
            "sampler": "glyphs", "n_way": 5, "n_shot": 2, "n_query": 15, "within": 0.0, "same_source": 0.0,
            "unequal": False,
            "stream": False, "train_way": 5, "train_shot": 2,
            "train_query": 15, "train_within": 0.0, "train_same_source": 0.0, "train_turns": False,
            "resolution": 1024,
            **vars(REGISTRY.task_sampler("glyphs").Config()),
        },
        "learners": {
            "protonet": {"distance": ["euclidean", "cosine"], "temperature": {"low": 0.01, "high": 100.0}},
            "pixels": {},
        },
        "encoder": {"conv4": {}},
        "outer": {},
        "augment": {},
        "objective": "accuracy",
        "search_on": "validation",
        "transductive": False,
        "trials": 30,
        "timeout": None,
        "budget": {"tasks": 4000},
        "evaluation": {
            "tasks": 200, "folds": 0, "finalists": 3, "repeats": 1, "longer": 1, "report_tasks": 1000, "ensemble": 0,
        },
            "final": None,
        "strategy": "bandit",
        "sampler": "tpe",
        "warm_start": [],
        "portfolio": None,
        "prune": True,
        "executor": "auto",
            "precision": "float32",
        "isolation": "none",
        "limits": {},
        "seed": 0,
    }  # fmt: skip


def test_regression_studies_have_the_samplers_encoder_and_the_objective_of_their_kind() -> None:
    study = resolved("{tasks: {sampler: sinusoid, n_shot: 5}, learners: maml}")
    assert list(study.space.encoders) == ["mlp"]
    assert (study.objective, study.tasks.n_way, study.tasks.train_way) == ("mse", 1, 1)


def test_train_tasks_keep_within_groups_as_test_tasks_do_unless_they_say_otherwise() -> None:
    def shares(tasks: str) -> tuple[float, float]:
        study = resolved(f"{{tasks: {{sampler: arrays, n_way: 5, n_shot: 1, {tasks}}}, learners: pixels}}")
        return study.tasks.within, study.tasks.train_within

    assert shares("n_query: 1") == (0.0, 0.0)
    assert shares("within: 1") == (1.0, 1.0)
    assert shares("within: 1, train_within: 0.5") == (1.0, 0.5)
    assert shares("train_within: 0.5") == (0.0, 0.5)


def test_train_tasks_share_sources_as_test_tasks_do_unless_they_say_otherwise() -> None:
    tasks = "sampler: omniglot, n_way: 5, n_shot: 1, split: splits/vinyals"

    def shares(more: str) -> tuple[float, float]:
        study = resolved(f"{{tasks: {{{tasks}, {more}}}, learners: protonet}}")
        return study.tasks.same_source, study.tasks.train_same_source

    assert shares("n_query: 1") == (0.0, 0.0)
    assert shares("same_source: 1") == (1.0, 1.0)
    assert shares("same_source: 1, train_same_source: 0.5") == (1.0, 0.5)
    assert shares("same_source: 0.2, train_same_source: {low: 0.4, high: 1}") == (0.2, 0.4)


def test_a_whole_number_may_be_written_with_an_exponent() -> None:
    assert resolved(STUDY, "budget.tasks=4e3").budget == resolved(STUDY, "budget.tasks=4000").budget
    assert type(resolved(STUDY, "trials=1e2").trials) is int


def test_a_stream_has_no_queries_of_its_own_and_takes_learners_that_stream() -> None:
    text = "{tasks: {sampler: glyphs, n_way: 5, n_shot: 10, stream: true}, learners: [mann, snail]}"
    study = resolved(text)
    assert (study.tasks.stream, study.tasks.n_query, study.tasks.train_query) == (True, 0, 0)
    for spec in study.tasks.specs(REGISTRY.task_sampler("glyphs")(study.tasks.config)):
        assert (spec.stream, spec.n_shot, spec.n_query, spec.n_drawn) == (True, 10, 0, 10)
    assert resolve(study.to_dict(), "a.yaml", REGISTRY) == study
    assert resolved(text, "tasks.n_query=0") == study


def test_shots_are_unequal_where_they_are_a_range() -> None:
    def unequal(tasks: str, learner: str = "protonet") -> list[bool]:
        text = f"{{tasks: {{sampler: glyphs, n_way: 5, unequal: true, {tasks}}}, learners: {learner}}}"
        study = resolved(text)
        assert resolve(study.to_dict(), "a.yaml", REGISTRY) == study
        return [spec.unequal for spec in study.tasks.specs(REGISTRY.task_sampler("glyphs")(study.tasks.config))]

    assert unequal("n_shot: [1, 5]") == [True, True]
    assert unequal("n_shot: 1, train_shot: [1, 5]") == [False, True]
    with pytest.raises(
        UserError, match=r"learners\.frn: it needs as many support examples of each class; leave it out"
    ):
        unequal("n_shot: [1, 5]", "frn")


def test_a_range_of_shots_is_kept_for_train_tasks_unless_they_say_otherwise() -> None:
    sampler = REGISTRY.task_sampler("glyphs")(REGISTRY.task_sampler("glyphs").Config())

    def ranges(tasks: str) -> list[tuple[int, int]]:
        study = resolved(f"{{tasks: {{sampler: glyphs, n_way: 5, {tasks}}}, learners: pixels}}")
        return [(spec.least_shot, spec.n_shot) for spec in study.tasks.specs(sampler)]

    assert ranges("n_shot: 2") == [(0, 2), (0, 2)]
    assert ranges("n_shot: [1, 5]") == [(1, 5), (1, 5)]
    assert ranges("n_shot: 1, train_shot: [1, 5]") == [(0, 1), (1, 5)]
    assert ranges("n_shot: [1, 5], train_shot: 3") == [(1, 5), (0, 3)]


def test_learners_may_be_one_name_a_list_or_a_mapping() -> None:
    assert (
        resolved(STUDY, "learners=protonet")
        == resolved(STUDY, "learners=[protonet]")
        == resolved(STUDY, "learners={protonet: }")
        == resolved(STUDY, "learners={protonet: {}}")
    )


def test_the_name_is_the_files_where_it_gives_none(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY.replace("name: a\n", ""), "my-study.yaml")
    assert load(path, REGISTRY).name == "my-study"


# YAML as people mean it


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1E-3", 0.001), ("3e4", 30000.0), ("-1e3", -1000.0), ("+2.5e+1", 25.0), ("1.5", 1.5),
        ("1.", 1.0), (".5", 0.5), ("1_000.5", 1000.5), (".inf", float("inf")), ("-.inf", -float("inf")),
        ("5", 5), ("-5", -5), ("0", 0), ("1_000", 1000),
        ("010", "010"), ("0x10", "0x10"), ("0b1", "0b1"), ("1:30", "1:30"), ("1:30.5", "1:30.5"), ("1e", "1e"),
        ("true", True), ("False", False), ("off", "off"), ("yes", "yes"), ("no", "no"), ("y", "y"), ("on", "on"),
        ("null", None), ("~", None), ("", None), ("2m", "2m"), ("2026-01-01", "2026-01-01"), ("=", "="),
        ("'1e-3'", "1e-3"), ('"true"', "true"),
    ],
)  # fmt: skip
def test_yaml_is_read_as_people_mean_it(tmp_path: Path, text: str, value: object) -> None:
    read_back = read(write(tmp_path, f"key: {text}\n"))["key"]
    assert (read_back, type(read_back)) == (value, type(value))


@given(st.text(alphabet="0123456789.eE+-_:xobINnfayestru~<=! #'", max_size=8) | st.text(max_size=20))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_text_setting_is_read_back_as_the_text_that_it_was(tmp_path: Path, text: str) -> None:
    tasks = GLYPHS | {"sampler": "omniglot", "root": text}
    study = resolve({"name": "a", "tasks": tasks, "learners": "protonet"}, "a.yaml", REGISTRY)
    assert study.tasks.config.root == text
    assert load(write(tmp_path, study.to_yaml()), REGISTRY) == study


def test_a_number_in_scientific_notation_is_a_bound(tmp_path: Path) -> None:
    study = load(write(tmp_path, STUDY.replace("0.0003, high: 0.01", "3e-4, high: 1E-2")), REGISTRY)
    assert study.space.outer["lr"] == tune.Real(0.0003, 0.01, log=True)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("90s", 90), ("10m", 600), ("1.5h", 5400), ("2d", 172800), ("45", 45), (45, 45), (0.5, 0.5), (" 2 m ", 120),
     (1e-5, 1e-5), (None, None)],
)  # fmt: skip
def test_a_time_has_a_unit_or_is_in_seconds(given: object, seconds: float | None) -> None:
    assert duration(given) == seconds


@pytest.mark.parametrize(
    "given",
    ["", "m", "-5s", "1e3s", "5 minutes", "0s", 0, -1, True, [1], float("nan"), float("inf"), 10**400, "9" * 400],
)
def test_what_is_no_time_is_refused_with_how_to_write_one(given: object) -> None:
    with pytest.raises(ValueError, match=r"is not a time; write it as 90s, 10m or 2h$"):
        duration(given)


# Bad input

UNREADABLE = {
    "empty": ("", "a study file is a mapping of keys such as `tasks:` and `learners:`, not empty"),
    "only a comment": ("# nothing\n", "a study file is a mapping of keys such as `tasks:` and `learners:`, not empty"),
    "a list": ("- tasks\n- learners\n", "`learners:`, not a list"),
    "a text": ("quickstart", "`learners:`, not a text"),
    "a number": ("5", "`learners:`, not a number"),
    "an open bracket": ("name: a\ntasks: {sampler: glyphs\nseed: 0\n", "a.yaml:3: not valid YAML: "),
    "a tab": ("tasks:\n\tsampler: glyphs\n", "a.yaml:2: not valid YAML: found character '\\t' that cannot start"),
    "two documents": ("a: 1\n---\nb: 2\n", "a.yaml:2: not valid YAML: but found another document"),
    "a key twice": ("seed: 0\ntrials: 3\nseed: 1\n", "a.yaml:3: not valid YAML: the key 'seed' stands twice"),
    "a key twice, deeper": ("tasks: {n_way: 5, n_way: 6}", "a.yaml:1: not valid YAML: the key 'n_way' stands twice"),
    "a number as key": ("1: 2\n", "a.yaml:1: not valid YAML: the key 1 is not a text"),
    "a list as key": ("? [a]\n: 2\n", "a.yaml:1: not valid YAML: the key ['a'] is not a text"),
    "an alias": ("a: &x 1\nb: *x\n", "a.yaml:2: not valid YAML: aliases (*name) are not read; write the value again"),
    "an alias of itself": ("a: &x [*x]\n", "a.yaml:1: not valid YAML: aliases (*name) are not read"),
    "a tag": ("a: !!int x\n", "a.yaml:1: not valid YAML: tags such as 'tag:yaml.org,2002:int' are not read"),
    "a tag that builds": ("a: !!python/object/apply:os.getcwd []\n", "python/object/apply:os.getcwd' are not read"),
    "a tag on a mapping": ("!!map [a]\n", "tags such as 'tag:yaml.org,2002:map' are not read; write the value alone"),
    "a number too long": ("a: " + "9" * 5000, "not valid YAML: Exceeds the limit"),
    "nested too deeply": ("a: " + "[" * 5000 + "]" * 5000, "not valid YAML: maximum recursion depth exceeded"),
    "nested too deeply, mappings": ("a: " + "{b: " * 5000 + "}" * 5000, "not valid YAML: maximum recursion depth"),
    "binary": (b"\x80\x81\x00\xff", "not a text file in UTF-8; a study file is YAML text"),
    "a picture": (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file in UTF-8; a study file is YAML text"),
    "control characters": ("a: \x00\x01", "not valid YAML: unacceptable character #x0000"),
    "too large": ("#" * (MAX_BYTES + 1), "1,000,001 bytes is too large for a study file, which may have 1,000,000"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_is_no_study_file_is_refused_with_its_place(tmp_path: Path, content: str | bytes, said: str) -> None:
    assert said in refusal(tmp_path, content)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "b.yaml", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(
            UserError, match=f"^cannot read the study file {path}: {why}; give the path of a YAML file$"
        ):
            read(path)


BAD = {
    # the names of things
    "learners=[protonett]": "learners: no learner named 'protonett'; did you mean 'protonet'?",
    "learners.zzz=": "learners: no learner named 'zzz'; choose one of: ",
    "tasks.sampler=glyph": "tasks.sampler: no task sampler named 'glyph'; did you mean 'glyphs'?",
    "encoder=conv5": "encoder: no encoder named 'conv5'; did you mean 'conv4'?",
    "objective=acuracy": "objective: no meta-objective named 'acuracy'; did you mean 'accuracy'?",
    "trails=3": "no key named 'trails'; did you mean 'trials'?",
    "tasks.n_ways=5": "tasks: no key named 'n_ways'; did you mean 'n_way'?",
    "learners.maml.inner_l=1": "learners.maml: no key named 'inner_l'; did you mean 'inner_lr'?",
    "encoder={conv4: {widht: 8}}": "encoder.conv4: no key named 'widht'; did you mean 'width'?",
    "outer.learning_rate=1": "outer: no key named 'learning_rate'; choose one of: averaging, clip, lr, ",
    "budget={task: 3}": "budget: no key named 'task'; did you mean 'tasks'?",
    "evaluation.finalist=3": "evaluation: no key named 'finalist'; did you mean 'finalists'?",
    "outer.lr={min: 1}": "outer.lr: unknown key 'min'; a range is written {low: …, high: …}",
    # ranges
    "outer.lr=1e-6": "outer.lr: 1e-06 is outside the declared range (0.0001 to 0.1, log scale)",
    "learners.maml.inner_lr={low: 0.01, high: 5}": (
        "learners.maml.inner_lr: 5 is outside the declared range (0.001 to 1, log scale)"
    ),
    "learners.maml.inner_lr={low: 0.5, high: 0.1}": "learners.maml.inner_lr: low (0.5) is above high (0.1)",
    "learners.maml.inner_lr=fast": (
        "learners.maml.inner_lr: 'fast' is not a number; the declared range is 0.001 to 1, log scale"
    ),
    "learners.maml.inner_steps=2.5": (
        "learners.maml.inner_steps: 2.5 is not a whole number; the declared range is 1 to 10, whole"
    ),
    "learners.maml.first_order=yes": "learners.maml.first_order: 'yes' is not an option; it must be one of False, True",
    "learners.protonet.distance={low: 1}": (
        "learners.protonet.distance: a range means nothing here; give one value or a list of values that are "
        "one of euclidean, cosine"
    ),
    "outer.lr=[]": (
        "outer.lr: an empty list leaves nothing to choose; it must hold values that are 0.0001 to 0.1, log scale"
    ),
    "learners.maml=5": "learners.maml: this is a number, and must be a mapping of keys to values",
    # tasks
    "tasks.n_way=1": "tasks.n_way: 1 is not a whole number of 2 or more",
    "tasks.n_shot=0": "tasks.n_shot: 0 is not a whole number of 1 or more",
    "tasks.n_shot=[5, 1]": (
        "tasks.n_shot: [5, 1] is not the least and the most shots, such as [1, 5]; write two whole numbers"
    ),
    "tasks.train_shot=[1]": "tasks.train_shot: [1] is not the least and the most shots, such as [1, 5]",
    "tasks.train_shot=[0, 5]": "tasks.train_shot: 0 is not a whole number of 1 or more",
    "tasks.n_shot=true": "tasks.n_shot: True is not a whole number of 1 or more",
    "tasks.n_query=1.5": "tasks.n_query: 1.5 is not a whole number of 1 or more",
    "tasks.train_way=1": "tasks.train_way: 1 is not a whole number of 2 or more",
    "tasks.train_way=20": (
        "tasks.train_way: maml learns a fixed number of ways, and train_way 20 is not n_way 5; make them "
        "equal or leave maml out"
    ),
    "tasks.stream=1": "tasks.stream: 1 must be true or false",
    "tasks.stream=true": "tasks.n_shot: 1: in a stream each class is shown twice or more, as the first is a guess",
    "tasks={sampler: glyphs, n_way: 5, n_shot: 10, n_query: 15, stream: true}": (
        "tasks.n_query: 15: a stream asks for each of its presentations and has no other queries; leave it out"
    ),
    "tasks={sampler: glyphs, n_way: 5, n_shot: 10, stream: true}": (
        "learners.protonet: it cannot learn a stream, in which each label is told one step late; take one that can "
        "(mann, snail), or leave out tasks.stream"
    ),
    "tasks={sampler: attributes, n_way: 5, n_shot: 1, file: a.npz, unequal: true}": (
        "tasks.unequal: the support sets of the sampler 'attributes' hold one description of each class; leave it out"
    ),
    "tasks={sampler: sinusoid, n_shot: [5, 10], unequal: true}": (
        "tasks.unequal: the sampler 'sinusoid' gives regression tasks, which have no classes; leave it out"
    ),
    "tasks.unequal=true": (
        "tasks.unequal: each class draws its shots from a range, and n_shot is 1; write the least and the most, such "
        "as n_shot: [1, 5], or leave it out"
    ),
    "tasks.within=2": "tasks.within: 2 is not a share of the tasks; write a number from 0 to 1",
    "tasks.train_within=true": "tasks.train_within: True is not a share of the tasks; write a number from 0 to 1",
    "tasks.within=1": (
        "tasks.within: the classes of the sampler 'glyphs' belong to no groups; leave it out, or take a sampler with "
        "groups: arrays, attributes, images, omniglot, sklearn_data, table, text"
    ),
    "tasks.same_source=1": (
        "tasks.same_source: the sampler 'glyphs' does not know the sources of its examples; leave it out, or take a "
        "sampler that does: omniglot"
    ),
    "tasks.train_turns=1": "tasks.train_turns: 1 must be true or false",
    "tasks.train_within=0.5": "tasks.train_within: the classes of the sampler 'glyphs' belong to no groups",
    "tasks.size=large": "tasks.size: 'large' is not a whole number, as its default 28 is",
    "tasks.sampler=3": "tasks.sampler: 3 is not a name",
    "tasks=[glyphs]": "tasks: this is a list, and must be a mapping of keys to values",
    "tasks=": "tasks: this is empty, and must be a mapping of keys to values",
    # kinds
    "learners=[protonet, finetune]": (
        "learners.finetune: it learns regression and the sampler 'glyphs' gives classification tasks; leave "
        "it out or take another sampler"
    ),
    "objective=mse": (
        "objective: 'mse' does not score classification tasks, which the sampler 'glyphs' gives; choose one "
        "of: accuracy"
    ),
    # transductive
    "encoder={conv4: {norm: batch}}": (
        "encoder.conv4.norm: 'batch' is transductive (a query's prediction depends on the other queries); set"
        " transductive: true"
    ),
    "encoder={conv4: {norm: [none, batch]}}": (
        "encoder.conv4.norm: 'batch' is transductive (a query's prediction depends on the other queries); set"
        " transductive: true"
    ),
    "transductive=yes": "transductive: 'yes' must be true or false",
    # the rest
    "budget={tasks: 3, cpu_seconds: 3}": "budget: give one of the two, {tasks: 4000} or {cpu_seconds: 10}",
    "budget={}": "budget: give one of the two, {tasks: 4000} or {cpu_seconds: 10}",
    "budget=4000": "budget: this is a number, and must be a mapping of keys to values",
    "budget.tasks=0": "budget.tasks: 0 is not a whole number of 1 or more",
    "budget={cpu_seconds: -1}": "budget.cpu_seconds: -1 is not a time; write it as 90s, 10m or 2h",
    "trials=0": "trials: 0 is not a whole number of 1 or more",
    "trials=many": "trials: 'many' is not a whole number of 1 or more",
    "timeout=2 minutes": "timeout: '2 minutes' is not a time; write it as 90s, 10m or 2h",
    "timeout=1:30": "timeout: '1:30' is not a time; write it as 90s, 10m or 2h",
    "timeout=true": "timeout: True is not a time; write it as 90s, 10m or 2h",
    "search_on=train": "search_on: 'train' must be validation or test",
    "executor=fast": "executor: 'fast' must be auto or fastest or loop or traced-loop or vmap or traced",
    "isolation=thread": "isolation: 'thread' must be none or process",
    "limits={time: 10m}": "limits: only a trial in a process of its own can be limited; set isolation: process",
    "seed=-1": "seed: -1 is not a whole number of 0 or more",
    "evaluation.tasks=1": "evaluation.tasks: 1 is not a whole number of 2 or more",
    "evaluation.cpu_seconds=0": "evaluation.cpu_seconds: 0 is not a time; write it as 90s, 10m or 2h",
    "evaluation=[200]": "evaluation: this is a list, and must be a mapping of keys to values",
    "name=../other": "name: '../other' names the run folder; use letters, digits, '.', '_' and '-', at most 100",
    "name=.git": "name: '.git' names the run folder; use letters, digits, '.', '_' and '-', at most 100",
    "name=": "name: None names the run folder; use letters, digits, '.', '_' and '-', at most 100",
    "name=3": "name: 3 names the run folder; use letters, digits, '.', '_' and '-', at most 100",
    "name=" + "a" * 101: "name: 'aaa",
    'name="a\\nb"': "name: 'a\\nb' names the run folder; ",
    "learners=": "learners: this is empty, and must be names: a list, or a mapping of names to their ranges",
    "learners=[]": "learners: this is empty, and must be names: a list, or a mapping of names to their ranges",
    "learners=5": "learners: this is a number, and must be names: a list, or a mapping",
}


@pytest.mark.parametrize(("override", "said"), BAD.items(), ids=BAD)
def test_a_mistake_is_answered_with_file_key_value_law_and_remedy(tmp_path: Path, override: str, said: str) -> None:
    message = refusal(tmp_path, STUDY, override)
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("limits.time=soon", "limits.time: 'soon' is not a time; write it as 90s, 10m or 2h"),
        ("limits.memory=much", "limits.memory: 'much' is not a size of 1MB or more; write it as 500MB or 2GB"),
        ("limits.memory=2", "limits.memory: 2 is not a size of 1MB or more; write it as 500MB or 2GB"),
        ("limits.memory=-2GB", "limits.memory: '-2GB' is not a size of 1MB or more; write it as 500MB or 2GB"),
        ("limits.seconds=2", "limits: no key named 'seconds'; choose one of: memory, time"),
    ],
)
def test_a_bad_limit_is_refused_with_what_it_may_be(tmp_path: Path, override: str, said: str) -> None:
    assert refusal(tmp_path, STUDY, "isolation=process", override) == said


@pytest.mark.parametrize(("text", "size"), [("500MB", 5e8), ("1.5 GB", 1.5e9), ("2G", 2e9), ("3000000", 3e6)])
def test_memory_is_limited_in_units_of_a_thousand(text: str, size: float) -> None:
    assert resolved(STUDY, "isolation=process", f"limits.memory={text}").limits.memory == size


@pytest.mark.parametrize("key", ["tasks", "learners"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    raw = yaml.safe_load(STUDY)
    del raw[key]
    assert refusal(tmp_path, yaml.safe_dump(raw)) == f"the key {key!r} is missing; a study file needs it"
    assert refusal(tmp_path, STUDY.replace("n_shot: 1, ", "")) == (
        "tasks: the key 'n_shot' is missing; a study file needs it"
    )


def test_a_files_own_name_must_do_as_a_name_too(tmp_path: Path) -> None:
    message = refusal(tmp_path, STUDY.replace("name: a\n", ""), name="my study.yaml")
    assert message == "name: 'my study' names the run folder; use letters, digits, '.', '_' and '-', at most 100"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("tasks.n_way=5", "tasks.n_way: 5 must be 1"),
        ("tasks.n_way=true", "tasks.n_way: True must be 1"),
        ("tasks.train_way=5", "tasks.train_way: 5 must be 1"),
        ("objective=accuracy", "objective: 'accuracy' does not score regression tasks, which the sampler 'sinusoid' "
                               "gives; choose one of: adaptation_time, mse, parameters, r2"),
        ("learners=[maml, protonet]", "learners.protonet: it learns classification and the sampler 'sinusoid' gives "
                                      "regression tasks; leave it out or take another sampler"),
    ],
)  # fmt: skip
def test_regression_has_no_ways_no_labels_and_its_own_learners(tmp_path: Path, override: str, said: str) -> None:
    text = yaml.safe_dump({"tasks": SINUSOID, "learners": ["maml"]})
    assert refusal(tmp_path, text, override).startswith(said)


# Transductive options


def test_transductive_options_are_left_out_of_declared_ranges_unless_allowed() -> None:
    for encoder in ("{conv4: {norm: }}", "{conv4: {norm: [layer, none]}}"):
        norm = resolved(STUDY, f"encoder={encoder}").space.encoders["conv4"]["norm"]
        assert isinstance(norm, tune.Choice)
        assert norm.options == ("layer", "none")
    norm = resolved(STUDY, "encoder={conv4: {norm: }}", "transductive=true").space.encoders["conv4"]["norm"]
    assert isinstance(norm, tune.Choice)
    assert norm.options == ("layer", "none", "batch")
    assert resolved(STUDY, "encoder={conv4: {norm: batch}}", "transductive=true").space.encoders["conv4"] == {
        "norm": tune.Fixed("batch")
    }


# Overrides


def test_an_override_sets_any_key_and_makes_the_mappings_on_its_way() -> None:
    raw: dict[str, Any] = {"learners": ["protonet", "maml"], "budget": None, "seed": 3}
    for override in ("tasks.n_way=20", "budget.tasks=1e3", "seed=0", "learners.maml.inner_lr={low: 0.1}", "name=a=b",
                     "timeout=", "outer.lr=[1e-3, 1e-2]"):  # fmt: skip
        override_key(raw, override)
    assert raw == {
        "tasks": {"n_way": 20},
        "budget": {"tasks": 1000.0},
        "seed": 0,
        "learners": {"protonet": None, "maml": {"inner_lr": {"low": 0.1}}},
        "name": "a=b",
        "timeout": None,
        "outer": {"lr": [0.001, 0.01]},
    }


def test_overriding_one_learner_of_a_list_leaves_the_others() -> None:
    listed = STUDY[: STUDY.index("learners:")] + "learners: [protonet, maml]\n" + STUDY[STUDY.index("encoder:") :]
    study = resolved(listed, "learners.maml.inner_steps=2")
    assert list(study.space.learners) == ["protonet", "maml"]
    assert study.space.learners["maml"]["inner_steps"] == tune.Fixed(2)
    assert study.space.learners["maml"]["inner_lr"] == tune.Real(0.001, 1.0, log=True)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trials", "--set 'trials': write it as path.to.key=value, such as --set tasks.n_way=20"),
        ("=3", "--set '=3': write it as path.to.key=value, such as --set tasks.n_way=20"),
        ("trials.n=3", "--set 'trials.n=3': 'trials' holds a value, not keys to set"),
        ("tasks.n_way.x.y=3", "--set 'tasks.n_way.x.y=3': 'tasks.n_way' holds a value, not keys to set"),
        ("encoder.conv4.width=8", "--set 'encoder.conv4.width=8': 'encoder' holds a value, not keys to set"),
        ("outer.lr=[1", "--set 'outer.lr=[1': '[1' is not a YAML value; quote it, or write a number or a text"),
        ("outer.lr=*x", "--set 'outer.lr=*x': '*x' is not a YAML value; quote it, or write a number or a text"),
        ("seed=!!int x", "--set 'seed=!!int x': '!!int x' is not a YAML value; quote it, or write a number or a text"),
    ],
)
def test_a_bad_override_is_refused_with_how_to_write_it(override: str, said: str) -> None:
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        resolved(STUDY, override)


@pytest.mark.parametrize("value", ["[" * 5000, "9" * 5000])
def test_an_override_beyond_all_measure_is_refused(value: str) -> None:
    with pytest.raises(UserError, match=r"^--set 'seed=.* is not a YAML value; "):
        resolved(STUDY, f"seed={value}")


# Whatever it is given, it resolves or refuses

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
WORDS = st.sampled_from(
    [
        *KEYS,
        *REGISTRY.learners,
        *GLYPHS,
        "conv4",
        "norm",
        "batch",
        "inner_lr",
        "lr",
        "low",
        "high",
        "cpu_seconds",
        "x",
        "",
    ]
)
ANYTHING = st.recursive(
    PLAIN | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | PLAIN, inner, max_size=4),
    max_leaves=10,
)


def resolves_or_refuses(raw: Any, overrides: list[str] = []) -> None:  # noqa: B006
    try:
        for override in overrides:
            override_key(raw, override)
        resolve(raw, "a.yaml", REGISTRY)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@given(st.data())
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_a_study_file_with_anything_anywhere_resolves_or_is_refused(data: st.DataObject) -> None:
    raw = yaml.safe_load(STUDY)
    raw["encoder"] = {"conv4": {"width": 8, "norm": None}}
    place: Any = raw
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[data.draw(st.just(key) | WORDS)] = data.draw(ANYTHING)
    resolves_or_refuses(raw)


@given(ANYTHING)
def test_any_mapping_resolves_or_is_refused(raw: Any) -> None:
    resolves_or_refuses(raw)


@given(WORDS, WORDS, ANYTHING, st.text(max_size=10))
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_any_override_is_taken_or_refused(first: str, second: str, value: object, text: str) -> None:
    resolves_or_refuses(yaml.safe_load(STUDY), [f"{first}.{second}={value}"])
    resolves_or_refuses(yaml.safe_load(STUDY), [text])


@given(st.text(alphabet=st.sampled_from("ab:- \n\t{}[],&*!|>'\"%@`#?~<=.0123e_") | st.characters(), max_size=40))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), text.encode("utf-8", "surrogatepass"))
    try:
        read(path)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@given(st.integers(0, len(STUDY)), st.text(max_size=3), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_a_study_file_with_a_slip_of_the_pen_resolves_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, typed: str, deleted: int
) -> None:
    text = STUDY[:place] + typed + STUDY[place + deleted :]
    path = write(tmp_path_factory.getbasetemp(), text)
    try:
        load(path, REGISTRY)
    except UserError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


# Train tasks that trials choose

DRAWN = "{tasks: {sampler: glyphs, n_way: 5, n_shot: 1, %s}, learners: %s}"


def test_a_range_of_train_ways_is_searched_and_survives_its_own_file() -> None:
    study = resolved(DRAWN % ("train_way: {low: 8, high: 20}, train_query: [1, 2]", "[protonet, pixels]"))
    assert study.tasks.searched == {"train_way": tune.Integer(8, 20, log=True), "train_query": tune.Choice((1, 2))}
    assert (study.tasks.train_way, study.tasks.train_shot) == (8, 1), "the nearest to the ways that count"
    assert resolve(yaml.safe_load(study.to_yaml()), "a.yaml", REGISTRY) == study


@pytest.mark.parametrize(
    ("tasks", "learners", "message"),
    [
        ("train_way: {low: 5, high: 20}", "maml", "maml learns a fixed number of ways"),
        ("train_way: {low: 1, high: 20}", "protonet", "1 is outside the declared range"),
        ("train_way: {low: 9, high: 2}", "protonet", "low .9. is above high .2."),
        ("train_query: []", "protonet", "an empty list leaves nothing to choose"),
        ("train_within: {low: 0, high: 1}", "protonet", "belong to no groups"),
        ("train_same_source: {low: 0, high: 1}", "protonet", "does not know the sources"),
        ("train_turns: [false, true], n_shot: 2, stream: true", "mann", "not with this tasks.stream"),
        ("train_turns: true, n_shot: [1, 2], unequal: true", "protonet", "not with this tasks.unequal"),
        ("resolution: 7", "protonet", "tasks.resolution: 7 is not a whole number of 8 or more"),
        ("resolution: [4, 20]", "protonet", "4 is outside the declared range"),
    ],
)
def test_ranges_of_train_tasks_that_make_no_sense_are_refused(tasks: str, learners: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(DRAWN % (tasks, learners))


# Objectives


def test_objectives_have_settings_and_a_preference_with_bounds() -> None:
    study = resolved(
        "{tasks: {sampler: glyphs, n_way: 5, n_shot: 1}, learners: protonet, prefer: 'calibration, parameters<=5e4',"
        " objective: {accuracy: , calibration: {bins: 10, temperature: fitted}, parameters: }}"
    )
    assert list(study.objectives) == ["accuracy", "calibration", "parameters"]
    assert (study.objectives["calibration"].bins, study.objectives["calibration"].temperature) == (10, "fitted")
    assert study.objective == "calibration"
    assert study.prefer.met({"accuracy": 0.1, "calibration": 0.5, "parameters": 50_000.0})
    assert not study.prefer.met({"accuracy": 0.9, "calibration": 0.0, "parameters": 50_001.0})
    assert resolve(yaml.safe_load(study.to_yaml()), "a.yaml", REGISTRY) == study


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("objective: [accuracy, acuracy]", "no meta-objective named 'acuracy'"),
        ("objective: [accuracy, mse]", "'mse' does not score classification tasks"),
        ("objective: {calibration: {bins: [5, 10]}}", "an objective's setting is one value"),
        ("objective: {calibration: {bins: 1}}", "1 is outside the declared range"),
        ("prefer: mse", "no objective of this study named 'mse'"),
        ("prefer: 'accuracy, parameters<=5'", "no objective of this study named 'parameters'"),
        ("prefer: 'accuracy, 5'", "write it as 'accuracy' or 'accuracy, parameters<=50000'"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(key: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(f"{{tasks: {{sampler: glyphs, n_way: 5, n_shot: 1}}, learners: protonet, {key}}}")
