"""Texts in a user's file: sentences with a class each, as counts of the words and letters in them.

Word and character n-grams are hashed to a fixed number of features, so that the words of classes never trained on are
features too, and weighted by how rare they are among train texts (tf-idf: Spärck Jones, 1972,
doi:10.1108/eb026526), by scikit-learn. Optionally reduced by a truncated SVD (LSA: Deerwester et al., 1990). Or the
file gives each text's embedding.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaopt import cache
from metaopt.errors import InputError, UserError
from metaopt.pools import ClassSampler, Split, apart, digest, divide, rows_of
from metaopt.preprocessing import Given, Preprocessing, Takes
from metaopt_tasks.files import column, find, labels_of, read_columns, table_kind, texts

WORDS = 0.5  # weight beside letters; on CLINC150 0.3 to 0.7 are alike, and 0 costs half a point
AT_ONCE = 2**24  # dense numbers made together
VERSION = 1  # another number wherever the same texts give other features, or old caches would be used


class Sentences(Preprocessing):
    """Makes features of texts by how rare words and letters are among the study's train texts; see `Text`.

    Where the study took embeddings, these are arrays, taken as they are.
    """

    takes: Takes = "texts"

    def __init__(
        self,
        x_shape: tuple[int, ...],
        settings: Mapping[str, Any] | None = None,
        arrays: Mapping[str, NDArray[Any]] | None = None,
    ) -> None:
        super().__init__(x_shape, settings, arrays)
        if self.settings["vectors"]:
            self.takes = "arrays"
        elif self.settings["version"] != VERSION:
            raise ValueError(f"features of version {self.settings['version']}, and this metaopt makes {VERSION}")
        else:
            self.idf = self.arrays["idf"]  # (2, n_hashed), of letters and of words

    def make(self, examples: Any) -> Tensor:
        """Return the features (n, features) of texts."""
        if self.takes == "arrays" or (isinstance(examples, np.ndarray) and examples.dtype.kind == "f"):
            return self.shaped(examples)
        if isinstance(examples, str | bytes) or not all(isinstance(text, str) for text in examples):
            raise InputError("the model takes texts, many at once; give a list of them")
        if not len(examples):
            raise InputError("there are no texts; give one or more")
        return torch.from_numpy(self.features([_plain(text) for text in examples]))

    def features(self, plain: Sequence[str]) -> NDArray[np.float32]:
        """Return the features (n, features) of texts in small letters."""
        from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

        sparse = self.sparse(plain)
        if "directions" not in self.arrays:
            return np.asarray(sparse.toarray(), np.float32)
        return np.asarray(normalize(sparse @ self.arrays["directions"].T), np.float32)

    def sparse(self, plain: Sequence[str]) -> Any:
        """Return the weighted counts, a sparse matrix (n, n_hashed) with rows of length 1."""
        from sklearn.preprocessing import normalize

        letters, words = (
            normalize(vectorizer.transform(plain).multiply(idf).tocsr())
            for vectorizer, idf in zip(_vectorizers(self.idf.shape[1]), self.idf, strict=True)
        )
        return normalize(letters + WORDS * words)

    def read(self, path: Path, *, labelled: bool) -> Given:
        """Return the texts of a CSV, TSV, JSON, JSON Lines or Parquet file, and the column of the class."""
        columns, label = read_columns(path), self.settings["label"]
        if vectors := self.settings["vectors"]:
            examples: Any = _vectors(column(columns, vectors, path, "vectors"), vectors, path)
        else:
            name = self.settings["text"]
            examples = texts(column(columns, name, path, "text"), "text", path)
        labels = texts(column(columns, label, path, "label"), "label", path) if labelled else None
        return Given([f"row {row}" for row in range(1, len(examples) + 1)], examples, labels)


def _plain(text: str) -> str:
    return " ".join(text.lower().split())  # texts alike so far have the same features


def _vectorizers(n_features: int) -> tuple[Any, Any]:
    """Return what counts the letters and the words of texts, hashed to so many features."""
    from sklearn.feature_extraction.text import HashingVectorizer  # type: ignore[import-untyped] # it takes a second

    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=n_features, norm=None)
    return letters, HashingVectorizer(token_pattern=r"\b\w+\b", n_features=n_features, norm=None)


def _fitted(train: Sequence[str], config: "Text.Config", identity: object) -> Sentences:
    """Return what makes features, fitted to the train texts; from the cache where it holds that."""

    def parts() -> Iterator[NDArray[Any]]:
        from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped]
        from sklearn.feature_extraction.text import TfidfTransformer

        counts = [vectorizer.transform(train) for vectorizer in _vectorizers(config.features)]
        idf = np.stack([TfidfTransformer().fit(count).idf_ for count in counts])
        yield idf
        if config.svd:
            unreduced = Sentences((config.features,), settings, {"idf": idf})
            yield TruncatedSVD(config.svd, random_state=0).fit(unreduced.sparse(train)).components_

    settings = {"version": VERSION, "vectors": "", "text": config.text, "label": config.label}
    shape = (2 + config.svd, config.features)
    made = cache.array(f"text-fitted-{shape[0]}", (identity, *shape), shape, np.float64, parts)
    arrays = {"idf": np.array(made[:2])} | ({"directions": np.array(made[2:])} if config.svd else {})
    return Sentences((config.svd or config.features,), settings, arrays)


class Text(ClassSampler):
    """Tell sentences apart by their words and letters: vectors of length 1, (features,)."""

    name = "text"
    made_by = Sentences

    @dataclass(frozen=True)
    class Config(Split):
        """Which file, which of its columns is what, what features are made, and how classes are divided into pools."""

        file: str = ""
        """A CSV, TSV, JSON, JSON Lines or Parquet file; JSON may hold [text, label] pairs, and lists of them by name,
        which are the pools where they are called train, val and test."""
        parts: tuple[str, ...] = ()
        """The lists of such a JSON file to read; none means all."""
        text: str = "text"
        """The column of the text."""
        label: str = "label"
        """The column of the class."""
        group: str = ""
        """The column of the class's group (superclass), where there is one."""
        pool: str = ""
        """The column that says train, val or test, where there is one."""
        vectors: str = ""
        """The column of each text's embedding, a list of numbers, to take instead of words and letters."""
        features: int = 2048
        """How many: the fewer, the more n-grams share one. On new classes of CLINC150 1024 cost a point, and 8192 are
        worth more than one, for three times the time."""
        svd: int = 0
        """Directions of the train texts to reduce the features to; 0: none. New classes often need the others."""

    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.features < 8 or not 0 <= config.svd < config.features:
            raise UserError(
                f"tasks.features is {config.features} and tasks.svd {config.svd}; set features to 8 or more, and svd "
                "below it, or to 0 for none"
            )
        path = find("file", config.file, "a file of texts, such as a CSV file")
        columns = read_columns(path, config.parts)
        labels = labels_of(columns, path, config)
        pools = divide(labels, config)
        if config.vectors:
            vectors = _vectors(column(columns, config.vectors, path, "vectors"), config.vectors, path)
            digests = np.stack([digest(vector.tobytes()) for vector in vectors])
            self.fill(torch.from_numpy(vectors), apart(pools, digests, labels.names, config))
            settings = {"vectors": config.vectors, "label": config.label}
            self.sentences = Sentences(vectors.shape[1:], settings)
            return
        given = texts(column(columns, config.text, path, "text"), "text", path)
        given = [_plain(text) for text in given]
        digests = np.stack([digest(text.encode("utf-8", "backslashreplace")) for text in given])
        names = [f"{name} ({text[:40]!r})" for name, text in zip(labels.names, given, strict=True)]
        pools = apart(pools, digests, names, config)
        if not len(train := rows_of(pools["train"])):
            raise UserError("the train pool has no texts, by which features are weighted; give it classes")
        if config.svd >= len(train):
            raise UserError(f"tasks.svd is {config.svd} and there are {len(train)} train texts; set it below that")
        identity = (VERSION, digest(digests.tobytes()).tolist(), digest(train.tobytes()).tolist())
        self.sentences = _fitted([given[row] for row in train], config, identity)

        def parts() -> Iterator[NDArray[Any]]:
            step = max(1, AT_ONCE // config.features)
            for start in range(0, len(given), step):
                yield self.sentences.features(given[start : start + step])

        shape = (len(given), config.svd or config.features)
        whole = (identity, config.features, config.svd)
        self.fill(torch.from_numpy(cache.array(f"text-{shape[1]}", whole, shape, np.float32, parts)), pools)

    def preprocessing(self, x_shape: tuple[int, ...]) -> Preprocessing:
        return self.sentences

    @classmethod
    def recognise(cls, path: Path) -> Mapping[str, Any] | None:
        if (found := table_kind(path)) is None or found.text is None:
            return None
        tasks = {"file": str(path), "text": found.text, "label": found.label, "duplicates": "skip"}
        encoders: dict[str, Any] = {"wide": {}, "mlp": {"width": [64, 256], "depth": 1}}
        return {"tasks": tasks, "encoder": encoders, "augment": {"dropout": {"low": 0.3, "high": 0.6}}}


def _vectors(values: Sequence[Any], name: str, path: Path) -> NDArray[np.float32]:
    """Return embeddings (n, n_numbers), which a file writes as lists, or as texts of numbers."""
    rows: list[NDArray[np.float32]] = []
    for number, value in enumerate(values, start=1):
        try:
            numbers = json.loads(value) if isinstance(value, str) and value.startswith("[") else value
            with np.errstate(over="ignore"):
                row = np.array(numbers.split() if isinstance(numbers, str) else numbers, np.float32)
        except (ValueError, TypeError, OverflowError, RecursionError):
            row = np.empty(0, np.float32)
        if row.ndim != 1 or not len(row) or not np.isfinite(row).all() or (rows and len(row) != len(rows[0])):
            raise UserError(
                f"{path}: row {number} of {name!r} is not a list of finite numbers as long as the others'; mend it or "
                "leave the row out"
            )
        rows.append(row)
    return np.stack(rows)
