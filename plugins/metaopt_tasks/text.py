"""Texts in a user's file: sentences with a class each, as counts of the words and letters in them.

Word and character n-grams are hashed to a fixed number of features, so that the words of classes never trained on are
features too, and weighted by how rare they are among train texts (tf-idf: Spärck Jones, 1972,
doi:10.1108/eb026526), by scikit-learn. Optionally reduced by a truncated SVD (LSA: Deerwester et al., 1990). Or the
file gives each text's embedding.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metaopt import cache
from metaopt.errors import UserError
from metaopt.pools import ClassSampler, Split, apart, digest, divide, rows_of
from metaopt_tasks.files import column, find, labels_of, read_columns, texts

WORDS = 0.5  # weight beside letters; on CLINC150 0.3 to 0.7 are alike, and 0 costs half a point
AT_ONCE = 2**24  # dense numbers made together
VERSION = 1  # another number wherever the same texts give other features, or old caches would be used


class Text(ClassSampler):
    """Tell sentences apart by their words and letters: vectors of length 1, (features,)."""

    name = "text"

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
        """How many: the fewer, the more n-grams share one. On new classes of CLINC150 1024 cost a point."""
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
            return
        given = texts(column(columns, config.text, path, "text"), "text", path)
        given = [" ".join(text.lower().split()) for text in given]  # texts alike so far have the same features
        digests = np.stack([digest(text.encode("utf-8", "backslashreplace")) for text in given])
        names = [f"{name} ({text[:40]!r})" for name, text in zip(labels.names, given, strict=True)]
        pools = apart(pools, digests, names, config)
        if not len(train := rows_of(pools["train"])):
            raise UserError("the train pool has no texts, by which features are weighted; give it classes")
        if config.svd >= len(train):
            raise UserError(f"tasks.svd is {config.svd} and there are {len(train)} train texts; set it below that")
        identity = (VERSION, digest(digests.tobytes()).tolist(), digest(train.tobytes()).tolist())
        self.fill(torch.from_numpy(_features(given, train, config, identity)), pools)


def _features(given: Sequence[str], train: NDArray[np.int64], config: Text.Config, identity: object) -> NDArray[Any]:
    """Return dense features (n, features), mapped from the cache, which `train` rows alone have fitted."""
    from sklearn.decomposition import TruncatedSVD  # type: ignore[import-untyped] # here, as it takes a second
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer  # type: ignore[import-untyped]
    from sklearn.preprocessing import normalize  # type: ignore[import-untyped]

    letters = HashingVectorizer(analyzer="char_wb", ngram_range=(2, 4), n_features=config.features, norm=None)
    words = HashingVectorizer(token_pattern=r"\b\w+\b", n_features=config.features, norm=None)
    rare_letters, rare_words = TfidfTransformer(), TfidfTransformer()
    svd = TruncatedSVD(config.svd or 1, random_state=0)

    def sparse(rows: Sequence[str]) -> Any:
        return normalize(
            rare_letters.transform(letters.transform(rows)) + WORDS * rare_words.transform(words.transform(rows))
        )

    def parts() -> Iterator[NDArray[Any]]:
        train_texts = [given[row] for row in train]
        rare_letters.fit(letters.transform(train_texts))
        rare_words.fit(words.transform(train_texts))
        if config.svd:
            svd.fit(sparse(train_texts))
        step = max(1, AT_ONCE // config.features)
        for start in range(0, len(given), step):
            made = sparse(given[start : start + step])
            yield (normalize(svd.transform(made)) if config.svd else made.toarray()).astype(np.float32)

    shape = (len(given), config.svd or config.features)
    return cache.array(f"text-{shape[1]}", (identity, config.features, config.svd), shape, np.float32, parts)


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
