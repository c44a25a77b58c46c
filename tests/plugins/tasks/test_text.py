"""Texts become features that only train texts have weighted, and new classes keep words of their own."""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer  # type: ignore[import-untyped]
from sklearn.preprocessing import normalize  # type: ignore[import-untyped]
from torch import Generator

from metaopt.errors import UserError
from metaopt.nn import class_means, squared_distances
from metaopt.pools import rows_of
from metaopt.task import POOLS, Pool
from metaopt_tasks.text import WORDS, Text

DATA = Path(os.environ.get("METAOPT_DATA") or Path(__file__).parents[4] / "shared" / "data")
CLINC = DATA / "clinc150" / "data_full.json"
needs_clinc = pytest.mark.skipif(not CLINC.exists(), reason=f"no CLINC150 at {CLINC}; METAOPT_DATA names another place")

TOPICS = {
    "weather": ["will it rain", "is it cold outside", "how hot is it", "rain or sun"],
    "bank": ["what is my balance", "send money to mum", "pay the rent", "how much money"],
    "food": ["a recipe for soup", "how to bake bread", "what to cook", "is soup healthy"],
    "music": ["play a song", "louder please", "next song", "who sings this"],
    "travel": ["book a flight", "cheap hotel in rome", "when is my flight", "visa for china"],
    "time": ["what time is it", "set an alarm", "wake me at six", "what day is it"],
}
PAIRS = [[text, topic] for number in range(4) for topic, said in TOPICS.items() for text in [said[number]]]
LISTS: dict[str, Any] = {"train": ("weather", "bank"), "validation": ("food", "music"), "test": ("travel", "time")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def load(path: Path, **config: Any) -> Text:
    return Text(Text.Config(file=str(path), **LISTS | config))


def features(sampler: Text) -> NDArray[np.float32]:
    """The features (n, n_features) of all rows."""
    sources = sampler.pools["train"].sources
    assert sources.dtype == torch.float32
    return sources.numpy()


def exact(texts: Sequence[str], train: NDArray[np.int64]) -> NDArray[np.float64]:
    """The same features without hashing: of every n-gram one, whether it is a word or letters."""
    kinds: list[dict[str, Any]] = [{"analyzer": "char_wb", "ngram_range": (2, 4)}, {"token_pattern": r"\b\w+\b"}]
    ngrams = sorted(set().union(*(CountVectorizer(**kind).fit(texts).vocabulary_ for kind in kinds)))
    features = np.zeros((len(texts), len(ngrams)))
    for kind, weight in zip(kinds, (1, WORDS), strict=True):
        counts = CountVectorizer(**kind, vocabulary=ngrams).fit_transform(texts)
        features += weight * TfidfTransformer().fit(counts[train]).transform(counts).toarray()
    made: NDArray[np.float64] = normalize(features)
    return made


def test_hashing_keeps_the_similarities_of_word_and_letter_tf_idf(tmp_path: Path) -> None:
    sampler = load(write(tmp_path / "a.json", PAIRS), features=2**16)
    found = features(sampler)
    want = exact([text for text, _ in PAIRS], rows_of(sampler.classes["train"]))
    np.testing.assert_allclose(found @ found.T, want @ want.T, atol=0.02)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    off_diagonal = want @ want.T - np.eye(len(want))
    assert off_diagonal.max() > 0.3  # the similarities are not all alike


def test_texts_of_other_classes_change_no_feature_of_train_texts(tmp_path: Path) -> None:
    before = load(write(tmp_path / "a.json", PAIRS))
    others = [[text if topic in LISTS["train"] else f"{text} rain money", topic] for text, topic in PAIRS]
    after = load(write(tmp_path / "b.json", others))
    train = rows_of(before.classes["train"])
    np.testing.assert_array_equal(features(after)[train], features(before)[train])
    assert not np.array_equal(features(after), features(before))


def test_words_of_new_classes_are_features(tmp_path: Path) -> None:
    found = features(load(write(tmp_path / "a.json", [*PAIRS, ["zyxwv", "time"], ["zyxwv!", "time"], ["qqq", "time"]])))
    close = found[-3:] @ found[-3:].T
    assert close[0, 1] > 0.6
    assert abs(close[0, 2]) < 0.1


def test_case_and_spaces_make_no_difference(tmp_path: Path) -> None:
    found = features(load(write(tmp_path / "a.json", [*PAIRS, ["  Wake\tME at   six ", "time"]])))
    (same,) = (row for row, (text, _) in enumerate(PAIRS) if text == "wake me at six")
    np.testing.assert_array_equal(found[-1], found[same])


def test_svd_keeps_the_directions_of_train_texts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", PAIRS)
    whole, reduced = load(path), load(path, svd=7)
    train = rows_of(whole.classes["train"])
    assert features(reduced).shape == (len(PAIRS), 7)
    np.testing.assert_allclose(np.linalg.norm(features(reduced), axis=1), 1, rtol=1e-5)
    of_train = features(whole)[train]
    _, values, directions = np.linalg.svd(of_train.astype(np.float64), full_matrices=False)
    assert len(values) == 8
    want = normalize(features(whole) @ directions[:7].T)
    np.testing.assert_allclose(features(reduced) @ features(reduced).T, want @ want.T, atol=0.05)


@pytest.mark.parametrize("write_vectors", [list, str, lambda v: " ".join(map(str, v))], ids=["list", "JSON", "spaces"])
def test_a_column_of_embeddings_is_taken_as_it_is(tmp_path: Path, write_vectors: Any) -> None:
    vectors = np.random.default_rng(0).normal(size=(len(PAIRS), 5)).round(3)
    rows = [
        {"label": topic, "embedding": write_vectors(vector.tolist())}
        for (_, topic), vector in zip(PAIRS, vectors, strict=True)
    ]
    found = features(load(write(tmp_path / "a.json", rows), vectors="embedding"))
    np.testing.assert_array_equal(found, vectors.astype(np.float32))


@pytest.mark.parametrize(
    "vector", [[1.0], [1, 2, 3], [], None, "a b", ["a", "b"], [[1, 2]], [1, None], [1, math.nan], {"a": 1}, [1, 1e300]]
)
def test_a_row_that_is_no_such_embedding_is_refused(tmp_path: Path, vector: Any) -> None:
    rows = [{"label": topic, "v": [number, 2]} for number, (_, topic) in enumerate(PAIRS)]
    rows[9]["v"] = vector
    with pytest.raises(UserError, match=r"row 10 of 'v' is not a list of finite numbers as long as the others'"):
        load(write(tmp_path / "a.json", rows), vectors="v")


def test_parts_called_as_pools_are_the_pools_unless_classes_are_divided_anew(tmp_path: Path) -> None:
    none: dict[str, Any] = dict.fromkeys(LISTS, ())
    parts = {
        "train": [pair for pair in PAIRS if pair[1] in LISTS["train"]],
        "val": [pair for pair in PAIRS if pair[1] in LISTS["validation"]],
        "test": [pair for pair in PAIRS if pair[1] in LISTS["test"]],
        "oos": [["what", "oos"]],
    }
    path = write(tmp_path / "a.json", parts)
    sampler = load(path, **none, parts=("train", "val", "test"))
    assert {pool: tuple(c.name for c in sampler.classes[pool]) for pool in POOLS} == {
        pool: tuple(sorted(LISTS[pool])) for pool in POOLS
    }
    mixed = write(tmp_path / "b.json", {"train": PAIRS[:12], "test": PAIRS[12:]})
    with pytest.raises(UserError, match=r"stands in the pools 'test' and 'train'.*set tasks\.split to 60/20/20"):
        load(mixed, **none)
    divided = load(mixed, **none, split="2/2/2")
    assert all(len(c.rows) == 4 for pool in POOLS for c in divided.classes[pool])


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"text": "txt"}, r"tasks\.text: .*no column named 'txt'; did you mean 'text'"),
        ({"vectors": "v"}, r"tasks\.vectors: .*no column named 'v'"),
        ({"features": 4}, r"tasks\.features is 4 and tasks\.svd 0; set features to 8 or more"),
        ({"svd": 2048}, r"set features to 8 or more, and svd below it"),
        ({"svd": 8}, r"tasks\.svd is 8 and there are 8 train texts; set it below that"),
        ({"train": ()}, r"the train pool has no texts, by which features are weighted"),
        ({"split": "60/20/20"}, r"tasks\.train is set beside tasks\.split"),
        ({"parts": ("train",)}, r"leave tasks\.parts out"),
        ({"file": ""}, r"tasks\.file is empty; name a file of texts, such as a CSV file"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(tmp_path: Path, cache: Path, config: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "a.json", PAIRS)
    with pytest.raises(UserError, match=says):
        Text(Text.Config(**{"file": str(path)} | LISTS | config))
    assert not cache.exists()


def test_a_row_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 25 has no text; write one, or leave the row out"):
        load(write(tmp_path / "a.json", [*PAIRS, [" ", "time"]]))


def test_a_sentence_in_two_pools_is_refused_with_both_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [*PAIRS, ["Will it RAIN", "time"]])
    with pytest.raises(
        UserError,
        match=r"row 1 \('will it rain'\) of the train pool and row 25 \('will it rain'\) of the test pool are",
    ):
        load(path)
    kept = load(path, duplicates="skip")
    assert [len(c.rows) for c in kept.classes["train"]] == [4, 3]


def test_features_are_made_once_and_those_of_other_texts_or_pools_never_used(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.json", PAIRS)
    first = features(load(path))
    assert np.array_equal(features(load(path)), first)
    assert len(list(cache.iterdir())) == 2  # what is fitted to train texts, and the features
    others: list[dict[str, Any]] = [{"train": ("weather", "time"), "test": ("bank",)}, {"features": 64}, {"svd": 4}]
    for number, config in enumerate(others, start=2):
        assert not np.array_equal(features(load(path, **config)), first)
        assert len(list(cache.iterdir())) == 2 * number
    write(path, [*PAIRS[:-1], ["what year is it", "time"]])
    assert not np.array_equal(features(load(path)), first)
    assert len(list(cache.iterdir())) == 10


def test_many_texts_are_made_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", PAIRS)
    first = features(load(path))
    monkeypatch.setattr("metaopt_tasks.text.AT_ONCE", 5 * 2048)
    monkeypatch.setenv("METAOPT_CACHE", str(tmp_path / "other"))
    np.testing.assert_array_equal(features(load(path)), first)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(said=st.lists(st.text(min_size=1, max_size=12), min_size=6, max_size=6))
def test_any_texts_give_finite_features_or_a_refusal(tmp_path: Path, said: list[str]) -> None:
    pairs = [[text, topic] for text, topic in zip(said, TOPICS, strict=True)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(json.dumps(pair).encode() for pair in pairs))
    try:
        sampler = load(path, features=32)
    except UserError as error:
        refusal = str(error)
    else:
        refusal = ""
        lengths = np.linalg.norm(features(sampler), axis=1)
        assert np.all((np.abs(lengths - 1) < 1e-5) | (lengths == 0))
    assert not refusal or re.search("has no text|are identical|has no texts", refusal)


# The real data


def accuracy(sampler: Text, pool: Pool, n_shot: int, n_tasks: int = 200) -> float:
    """The accuracy of nearest class mean on 5-way tasks."""
    spec = sampler.spec(5, n_shot, 15)
    sampler.check(pool, spec)
    batch = sampler.draw(pool, spec, n_tasks, Generator().manual_seed(0))
    hits = [
        (squared_distances(query_x, class_means(support_x, support_y, 5)).argmin(1) == query_y).float().mean()
        for support_x, support_y, query_x, query_y in zip(*batch.tensors(), strict=True)
    ]
    return float(torch.stack(hits).mean())


@needs_clinc
def test_clinc150_is_told_apart_by_nearest_class_mean_as_well_as_it_can_be(tmp_path: Path) -> None:
    given: dict[str, Any] = {"file": str(CLINC), "parts": ("train", "val", "test"), "split": "50/50/50"}
    with pytest.raises(UserError, match=r"are identical \(\d examples stand in two pools\)"):
        Text(Text.Config(**given))  # a sentence has two labels
    sampler = Text(Text.Config(**given, duplicates="skip"))
    assert [len(sampler.classes[pool]) for pool in POOLS] == [50, 50, 50]
    assert sum(len(rows_of(sampler.classes[pool])) for pool in POOLS) > 22_490
    one, five = accuracy(sampler, "test", 1), accuracy(sampler, "test", 5)
    assert 0.76 < one < 0.83  # 79.4 % on 1,000 tasks; standard error 0.7 here
    assert 0.93 < five < 0.96  # 94.3 %
