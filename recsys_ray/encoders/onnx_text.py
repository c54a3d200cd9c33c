"""Texts to unit vectors by ONNX Runtime: what queries are encoded with while serving."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.encoders.onnx_session import open_session

FULL_FILE, INT8_FILE = "fp32.onnx", "int8.onnx"
TOKENIZER_FILE, FACTS_FILE = "tokenizer.json", "encoder.json"


@dataclass(frozen=True)
class Fidelity:
    """How near an exported encoder stays to the model that it was made of, on texts of the catalogue.

    Attributes:
        mean_cosine: Between its vectors and the model's.
        min_cosine: The smallest of them.
        recall: Share of items that are among the ten nearest to the first half of their own text, encoded by it.
        full_recall: The same with questions encoded by the model.
        texts: How many texts were compared.
    """

    mean_cosine: float
    min_cosine: float
    recall: float
    full_recall: float
    texts: int


@dataclass(frozen=True)
class OnnxFacts:
    """What is written beside exported encoders.

    Attributes:
        backbone_id: Of the model, whose space they answer in.
        dim: Length F of the vectors.
        fidelity: File name to how near it stays; files that strayed too far were not kept.
        refused: File name to why it is not there.
    """

    backbone_id: str
    dim: int
    fidelity: dict[str, Fidelity]
    refused: dict[str, str]

    def save(self, directory: Path) -> None:
        """Write as JSON."""
        (directory / FACTS_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, directory: Path) -> "OnnxFacts":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When it cannot be read.
        """
        try:
            written = json.loads((directory / FACTS_FILE).read_text())
            fidelity = {name: Fidelity(**one) for name, one in written.pop("fidelity").items()}
            return cls(**written, fidelity=fidelity)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{directory / FACTS_FILE} cannot be read: {error}") from None


class OnnxText:
    """An exported text encoder. Use `load_onnx_text`.

    Texts of equally many tokens share a batch, so there is neither padding nor a mask. Activations are quantised token
    by token, so the vector of a text does not depend on the batch that it is in.

    Args:
        session: ONNX Runtime's.
        tokenizer: Of the `tokenizers` library, which cuts long texts.
        dim: Length F of the vectors.
    """

    def __init__(self, session: Any, tokenizer: Any, dim: int) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self.dim = dim

    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        """(n, F) unit vectors of n texts."""
        vectors = np.zeros((len(pieces), self.dim), np.float32)
        tokens = [one.ids for one in self._tokenizer.encode_batch_fast(list(pieces))]
        for rows in _batches(np.array([len(ids) for ids in tokens], np.int64), batch_size):
            ids = np.array([tokens[row] for row in rows.tolist()], np.int64)
            vectors[rows] = self._session.run(None, {"input_ids": ids})[0]
        return vectors


def load_onnx_text(directory: Path, name: str, threads: int = 1) -> OnnxText:
    """Load an exported encoder.

    Args:
        directory: What `onnx_export.export_text` filled.
        name: `FULL_FILE` or `INT8_FILE`.
        threads: It computes with so many.

    Raises:
        MissingExtraError: When ONNX Runtime is not installed.
        ArtifactError: When a file cannot be read.
    """
    session = open_session(directory / name, threads)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER_FILE))
    except Exception as error:  # it has no narrower class for a file that is not what it should be
        raise ArtifactError(f"{directory / TOKENIZER_FILE} cannot be read: {error}") from None
    return OnnxText(session, tokenizer, OnnxFacts.load(directory).dim)


def _batches(lengths: IntArray, batch_size: int) -> Iterator[IntArray]:
    """Rows of equal length, at most so many at once."""
    order = np.argsort(lengths, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(lengths[order])) + 1):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]
