"""Attribute tasks pair each class's own description with examples of it, and refuse what they cannot give."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped]
from torch import Generator

from metaopt import cli
from metaopt.errors import UserError
from metaopt_tasks.attributes import Attributes

N_CLASSES, EACH = 10, 6


def arrays(**changes: Any) -> dict[str, Any]:
    """Return data in which every number of an example or a description tells its class."""
    y = np.repeat(np.arange(N_CLASSES), EACH)
    x = y[:, None] + np.linspace(0, 0.5, len(y))[:, None] * np.ones(3)
    attributes = 100.0 * np.arange(N_CLASSES)[:, None] * np.ones(2)
    return {"X": x.astype(np.float32), "y": y, "attributes": attributes} | changes


def sampler(folder: Path, data: dict[str, Any], **settings: Any) -> Attributes:
    path = folder / "data.npz"
    np.savez(path, **data)
    return Attributes(Attributes.Config(file=str(path), **settings))


@pytest.mark.parametrize("pool", ["train", "validation", "test"])
def test_labels_pair_descriptions_with_examples_of_their_class(tmp_path: Path, pool: Any) -> None:
    tasks = sampler(tmp_path, arrays())
    spec = tasks.spec(2, 1, 3)
    assert (spec.x_shape, spec.support_shape, spec.n_train_classes) == ((3,), (2,), 6)
    batch = tasks.draw(pool, spec, 20, Generator().manual_seed(0))
    assert batch.support_x.shape == (20, 2, 2)
    for support, label, query, query_y in zip(*batch.tensors(), strict=True):
        described = support[label.argsort(), 0] / 100  # the class of each label
        assert torch.equal(query[:, 0].floor(), described[query_y])


def test_labelled_examples_come_with_the_descriptions_of_all_train_classes(tmp_path: Path) -> None:
    examples = sampler(tmp_path, arrays()).examples(50, Generator().manual_seed(0))
    assert examples.descriptions is not None
    assert torch.equal(examples.x[:, 0].floor(), examples.descriptions[examples.y, 0] / 100)


def test_a_task_may_ask_for_every_example_of_a_class(tmp_path: Path) -> None:
    tasks = sampler(tmp_path, arrays())
    tasks.check("test", tasks.spec(2, 1, EACH))
    said = r"n_shot 0 and n_query 7 need 7 examples of every class, and '6' .* has 6; set tasks.n_query to 6 or less"
    with pytest.raises(UserError, match=said):
        tasks.check("test", tasks.spec(2, 1, EACH + 1))


def test_rows_are_found_by_the_names_of_classes(tmp_path: Path) -> None:
    names = np.array([f"class{9 - i}" for i in range(N_CLASSES)])  # row i describes class 9 - i
    data = arrays(classes=names, y=np.array([f"class{9 - i}" for i in arrays()["y"]]))
    examples = sampler(tmp_path, data).examples(50, Generator().manual_seed(0))
    assert examples.descriptions is not None
    assert torch.equal(examples.x[:, 0].floor(), examples.descriptions[examples.y, 0] / 100)


def test_safetensors_hold_the_same(tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    save_file(arrays(), path)
    tasks, same = Attributes(Attributes.Config(file=str(path))), sampler(tmp_path, arrays())
    spec = tasks.spec(2, 1, 3)
    one, other = (it.draw("train", spec, 3, Generator().manual_seed(0)) for it in (tasks, same))
    assert all(torch.equal(a, b) for a, b in zip(one.tensors(), other.tensors(), strict=True))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attributes": np.ones((9, 2))}, "no row of attributes describes the class '9'; add one"),
        ({"attributes": np.ones(10)}, r"attributes is \(10,\) of float64; give finite numbers"),
        ({"attributes": np.full((10, 2), np.nan)}, "give finite numbers"),
        ({"classes": np.array(["a", "b"])}, "classes has 2 different names and attributes 10 rows"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        sampler(tmp_path, arrays(**changes))


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".npz", ".safetensors"]))
def test_a_file_damaged_anywhere_gives_finite_numbers_or_a_refusal(
    tmp_path: Path, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays())
    else:
        save_file(arrays(), path)
    whole = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    try:
        tasks = Attributes(Attributes.Config(file=str(path)))
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal
    for pool in () if refusal else tasks.pools.values():
        assert pool.sources.isfinite().all()
        assert pool.descriptions is None or pool.descriptions.isfinite().all()


def test_pickled_attributes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.npz cannot be read \(.*allow_pickle"):
        sampler(tmp_path, arrays(attributes=np.array([[object()]] * N_CLASSES)))


def test_a_file_without_attributes_is_refused(tmp_path: Path) -> None:
    data = arrays()
    data["atributes"] = data.pop("attributes")
    with pytest.raises(UserError, match="no array named 'attributes'; did you mean 'atributes'"):
        sampler(tmp_path, data)


def test_more_than_one_description_of_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a class has one description, and n_shot is 5; set tasks.n_shot to 1"):
        sampler(tmp_path, arrays()).spec(2, 5, 3)


STUDY = """
name: zero
tasks: {{sampler: attributes, file: {file}, n_way: 5, n_shot: 1, n_query: 5}}
learners: {learners}
encoder: {{identity: {{}}}}
trials: 2
budget: {{tasks: {tasks}}}
evaluation: {{tasks: 100, finalists: 1, report_tasks: 100}}
"""


def study(folder: Path, capsys: pytest.CaptureFixture[str], file: Path, learners: str, tasks: int) -> tuple[int, Any]:
    """Run a study by the command line; return the exit code and what it printed."""
    path = folder / "zero.yaml"
    path.write_text(STUDY.format(file=file, learners=learners, tasks=tasks))
    code = cli.main(["study", "run", str(path), "--output", str(folder / "run"), "--json", "--quiet"])
    return code, capsys.readouterr()


def test_learners_that_need_examples_are_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "data.npz", **arrays())
    code, out = study(tmp_path, capsys, tmp_path / "data.npz", "[eszsl, protonet]", 10)
    assert code == 2
    assert out.err.strip().endswith(
        "zero.yaml: learners.protonet: it learns from examples of classes and the sampler 'attributes' gives "
        "descriptions; leave it out or take another sampler"
    )


def clinc150() -> Path:
    root = Path(os.environ.get("METAOPT_DATA", Path(__file__).parents[4] / "shared" / "data"))
    path = root / "clinc150" / "data_full.json"
    if not path.exists():
        pytest.skip(f"there is no {path}; name the folder above clinc150 in METAOPT_DATA")
    return path


def test_intents_are_recognised_by_their_names_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """CLINC150: the description of a class is its name, such as "book flight"; no sentence of test classes is seen."""
    sentences, names = zip(*json.loads(clinc150().read_text())["train"], strict=True)
    vectors = HashingVectorizer(n_features=256, analyzer="char_wb", ngram_range=(3, 4), alternate_sign=False)
    classes = sorted(set(names))
    file = io.BytesIO()
    np.savez(
        file,
        X=vectors.transform(sentences).toarray().astype(np.float32),
        y=np.array(names),
        classes=np.array(classes),
        attributes=vectors.transform([name.replace("_", " ") for name in classes]).toarray(),
    )
    (tmp_path / "intents.npz").write_bytes(file.getvalue())
    code, out = study(tmp_path, capsys, tmp_path / "intents.npz", "[eszsl, protonet_zero]", 1000)
    board = json.loads(out.out)
    assert code == 0
    scores = {name: entry["search"]["mean"] for name, entry in board["learners"].items()}
    assert min(scores.values()) > 0.4, scores  # where chance is 0.2, and labels of −1 come to 0.3
