"""TF-IDF vectors of the catalogue's texts and attributes, and of free text in the same vocabulary.

Salton and Buckley 1988: term frequency 1 + ln(count), inverse document frequency ln((1 + N) / (1 + n)) + 1; unit
length.
"""

import json
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from recsys_ray.core import schema
from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels.table import SparseRows, Table

_WORD = re.compile(r"\w+")
_TERMS_FILE = "terms.json"
_IDF_FILE = "idf.npy"
_ITEMS, _POSTINGS = "items", "postings"


@dataclass(frozen=True)
class TfIdf:
    """A vocabulary, and the catalogue in it.

    Attributes:
        terms: (V,) words ("shimmer") and attribute values ("color=red").
        idf: (V,) float32.
        items: (N, V) unit rows.
        postings: (V, N) its transpose: the items of each term.
    """

    terms: tuple[str, ...]
    idf: FloatArray
    items: Table
    postings: Table

    @cached_property
    def term_rows(self) -> dict[str, int]:
        """Term to its row."""
        return {term: row for row, term in enumerate(self.terms)}

    def of_texts(self, texts: Sequence[str | None]) -> SparseRows:
        """Unit vectors of free texts; unknown words are ignored, None is empty."""
        return self.of_documents([words(text or "") for text in texts])

    def of_documents(self, documents: Sequence[Sequence[str]]) -> SparseRows:
        """Unit vectors of what `documents` makes of items, or of the words of texts; unknown terms are ignored."""
        counted = [Counter(document) for document in documents]
        known = [{self.term_rows[term]: count for term, count in c.items() if term in self.term_rows} for c in counted]
        columns = Ragged.of([list(counts) for counts in known])
        counts = np.array([count for row in known for count in row.values()], np.float32)
        values = (1 + np.log(counts)) * self.idf[columns.values] if len(counts) else counts
        norms = np.sqrt(np.bincount(columns.row_of_value, values**2, minlength=len(documents)))
        return SparseRows(columns, (values / norms[columns.row_of_value]).astype(np.float32))

    def with_items(self, items: sp.csr_matrix) -> "TfIdf":
        """The same vocabulary over other items, (N, V)."""
        return replace(self, items=Table.of(items), postings=Table.of(items.T))

    def of_items(self, rows: SparseRows) -> SparseRows:
        """For each query, the weighted sum of its items' vectors."""
        count = len(rows.values)
        steps = sp.csr_matrix((rows.values, np.arange(count), rows.columns.offsets), (len(rows.columns), count))
        total = sp.csr_matrix(steps @ self.items.rows(rows.columns.values))
        total.sort_indices()
        return SparseRows(Ragged(total.indices.astype(np.int64), total.indptr.astype(np.int64)), total.data)

    @property
    def num_items(self) -> int:
        """N."""
        return self.postings.num_columns

    def save(self, directory: Path) -> None:
        """Write into an existing directory."""
        (directory / _TERMS_FILE).write_text(json.dumps(self.terms, ensure_ascii=False))
        np.save(directory / _IDF_FILE, self.idf)
        for name, table in ((_ITEMS, self.items), (_POSTINGS, self.postings)):
            (directory / name).mkdir()
            table.save(directory / name)

    @classmethod
    def load(cls, directory: Path) -> "TfIdf":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When a file is missing or cannot be read.
        """
        try:
            terms = tuple(json.loads((directory / _TERMS_FILE).read_text()))
            idf = np.load(directory / _IDF_FILE, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"the vocabulary in {directory} cannot be read: {error}") from None
        return cls(terms, idf, Table.load(directory / _ITEMS), Table.load(directory / _POSTINGS))


def words(text: str) -> list[str]:
    """Lower-cased runs of letters and digits of any script."""
    return _WORD.findall(text.lower())


def vectorise(items: pa.Table, fields: Fields, attribute_words: bool, max_share: float) -> TfIdf:
    """TF-IDF vectors of the whole catalogue.

    Args:
        items: With the derived column `_text` where there are text fields.
        fields: Names the categorical fields; each value is a term "field=value".
        attribute_words: Whether the words of categorical values count as words of the text too, so that a text query
            finds them.
        max_share: Terms that more than this share of the items have are left out.
    """
    counts = _counted(documents(items, fields, attribute_words))
    num_items = items.num_rows
    frequency = np.bincount(counts.columns, minlength=len(counts.terms))
    kept = np.flatnonzero(frequency <= max_share * max(num_items, 1)).tolist()
    kept.sort(key=lambda place: counts.terms[place])
    idf = (np.log((1 + num_items) / (1 + frequency[kept])) + 1).astype(np.float32)
    vectors = _weighted(counts, kept, idf)
    return TfIdf(tuple(counts.terms[place] for place in kept), idf, Table.of(vectors), Table.of(vectors.T))


@dataclass(frozen=True)
class _Counts:
    """How often each item has each term, in CSR form: numbers alone, so that a million items fit into memory.

    Attributes:
        terms: In order of first appearance.
        columns: Terms of the items, end to end, each once an item.
        counts: How often the item has it.
        offsets: (N + 1,).
    """

    terms: list[str]
    columns: IntArray
    counts: FloatArray
    offsets: IntArray


def _counted(documents_: Iterable[list[str]]) -> _Counts:
    place_of: dict[str, int] = {}
    columns, counts, offsets = array("q"), array("f"), array("q", [0])
    for document in documents_:
        counted = Counter(document)
        columns.extend(place_of.setdefault(term, len(place_of)) for term in counted)
        counts.extend(counted.values())
        offsets.append(len(columns))
    return _Counts(
        list(place_of), np.array(columns, np.int64), np.array(counts, np.float32), np.array(offsets, np.int64)
    )


def _weighted(counts: _Counts, kept: list[int], idf: FloatArray) -> sp.csr_matrix:
    """(N, V) unit TF-IDF vectors of the terms that are kept."""
    row_of = np.full(len(counts.terms), -1, np.int64)
    row_of[kept] = np.arange(len(kept))
    columns = row_of[counts.columns]
    known = columns >= 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(known)])[counts.offsets]
    columns, values = columns[known], (1 + np.log(counts.counts[known])) * idf[columns[known]]
    matrix = sp.csr_matrix((values, columns, offsets), (len(offsets) - 1, len(kept)))
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return sp.csr_matrix(sp.diags(1 / np.maximum(norms, 1e-12)) @ matrix)


def documents(items: pa.Table, fields: Fields, attribute_words: bool) -> Iterable[list[str]]:
    """The terms of each item, with repetitions."""
    texts = items.column(schema.TEXT).to_pylist() if schema.TEXT in items.column_names else [None] * items.num_rows
    columns = {name: items.column(name).to_pylist() for name in fields.categorical if name in items.column_names}
    for row, text in enumerate(texts):
        document = words(text or "")
        for name, values in columns.items():
            for value in _values(values[row]):
                document.append(f"{name}={value}")
                if attribute_words:
                    document += words(value)
        yield document


def _values(value: object) -> list[str]:
    """A categorical cell as strings: a list of them, one, or none."""
    if value is None:
        return []
    return [str(one) for one in value if one is not None] if isinstance(value, list) else [str(value)]
