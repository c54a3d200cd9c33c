"""Query encoders: histories, free text and pictures to vectors in the spaces that channels search."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import SpaceError
from recsys_ray.index.live import LiveIndex, width
from recsys_ray.retrieval.channels.table import decayed
from recsys_ray.retrieval.query import Queries

if TYPE_CHECKING:  # torch and transformers load only where a release needs them
    from recsys_ray.encoders.modality import Backbone
    from recsys_ray.encoders.onnx_user import OnnxUserTower
    from recsys_ray.encoders.two_tower import TwoTower

BackboneLoader = Callable[[str], "Backbone | None"]
"""The frozen backbone of a modality ("text", "image"), loaded at its first use; None where there is none."""


class TextEncoder(Protocol):
    """Texts to vectors in the space of a text backbone."""

    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        """(n, F) unit vectors."""
        ...


TextLoader = Callable[[], TextEncoder | None]
"""What encodes the texts of questions, loaded at its first use; None where the backbone itself does, in torch."""

Piece = str | bytes
"""A text, or an encoded picture."""

_TEXT = "text"
_BATCH = 512
_PIECES = 64


@dataclass(frozen=True)
class LiveVectors:
    """The item vectors of an index that changes, some at a time; rows that it does not have are zeros."""

    index: LiveIndex

    @property
    def shape(self) -> tuple[int, ...]:
        """As that of an array of them all."""
        return self.index.num_rows, width(self.index)

    def __getitem__(self, rows: IntArray) -> FloatArray:
        return self.index.at(rows)


class QueryEncoder(Protocol):
    """Fills in query vectors."""

    @property
    def space_id(self) -> str:
        """The space it answers in."""
        ...

    def encode(self, queries: Queries) -> dict[str, FloatArray]:
        """Space id to (B, D) unit vectors; a row of zeros where a question has nothing to encode."""
        ...

    def of_pieces(self, modality: str, pieces: Sequence[Piece]) -> FloatArray | None:
        """(n, D) unit vectors of texts or pictures of items; None when this space does not read the modality."""
        ...

    def of_texts(self, texts: Sequence[str]) -> FloatArray | None:
        """(n, D) unit vectors of the texts of questions; None when this space reads no texts."""
        ...


def backbone_itself() -> None:
    """The `TextLoader` of the full model."""


@dataclass(frozen=True)
class TowerQueryEncoder:
    """The trained towers: the user tower reads the history, the item tower a text with its other modalities masked.

    A question with both gets the mean direction of the two; one with neither, and no user attributes, gets none.

    Attributes:
        model: The towers, in evaluation mode.
        item_vectors: (N, D) what the item tower makes of the catalogue, the same that the index holds.
        space_id: The towers' space.
        backbones: Frozen backbones, for texts and pictures.
        texts: What encodes the texts of questions.
        user_tower: The user tower as a graph, which answers alike within rounding; None asks the model's own.
    """

    model: "TwoTower"
    item_vectors: FloatArray | LiveVectors
    space_id: str
    backbones: BackboneLoader
    texts: TextLoader = backbone_itself
    user_tower: "OnnxUserTower | None" = None

    def __post_init__(self) -> None:
        dim, came = self.model.config.width, self.item_vectors.shape[1]
        if dim != came:
            raise SpaceError(f"the towers of space {self.space_id} give {dim} dimensions, the item vectors have {came}")

    def encode(self, queries: Queries) -> dict[str, FloatArray]:
        """See `QueryEncoder.encode`."""
        vectors = self._of_histories(queries.history, queries.user_tokens)
        return {self.space_id: _with_texts(vectors, queries, self)}

    def of_pieces(self, modality: str, pieces: Sequence[Piece]) -> FloatArray | None:
        """See `QueryEncoder.of_pieces`."""
        values = self.read(modality, pieces)
        return None if values is None else self._of_values(modality, values)

    def of_texts(self, texts: Sequence[str]) -> FloatArray | None:
        """See `QueryEncoder.of_texts`."""
        encoder = self.texts() if _TEXT in self.model.item_tower.names else None
        if encoder is None:
            return self.of_pieces(_TEXT, texts)
        return self._of_values(_TEXT, {"vector": encoder.encode(texts, _PIECES)})

    def _of_values(self, modality: str, values: dict[str, np.ndarray]) -> FloatArray:
        import torch

        from recsys_ray.encoders.inputs import ItemInputs

        tensors = {name: torch.from_numpy(array) for name, array in values.items()}
        present = torch.ones(len(next(iter(tensors.values()))), dtype=torch.bool)
        with torch.inference_mode():
            inputs = ItemInputs({modality: tensors}, {modality: present})
            vectors: FloatArray = self.model.item_tower(inputs).float().numpy()
        return vectors

    def read(self, modality: str, pieces: Sequence[Piece]) -> dict[str, np.ndarray] | None:
        """What the item tower reads of the pieces: features of a frozen backbone, or a trained one's own input."""
        from recsys_ray.encoders.two_tower import trained_backbones

        trained = trained_backbones(self.model)
        if modality in trained:
            prepared: dict[str, np.ndarray] = trained[modality].preprocess(pieces)
            return prepared
        backbone: Any = self.backbones(modality) if modality in self.model.item_tower.names else None
        return None if backbone is None else {"vector": backbone.encode(pieces, _PIECES)}

    def _of_histories(self, history: Ragged, user_tokens: IntArray | None) -> FloatArray:
        """(B, D) the user tower's answer; zeros where there is neither a history nor an attribute."""
        vectors = np.zeros((len(history), self.model.config.width), np.float32)
        known = history.lengths > 0
        if user_tokens is not None:
            known = known | user_tokens.any(1)
        asked = np.flatnonzero(known)
        # Those of a length stand together: less padding.
        asked = asked[np.argsort(history.lengths[asked], kind="stable")]
        for start in range(0, len(asked), _BATCH):
            rows = asked[start : start + _BATCH]
            vectors[rows] = self._block(history.take(rows), None if user_tokens is None else user_tokens[rows])
        return vectors

    def _block(self, history: Ragged, user_tokens: IntArray | None) -> FloatArray:
        width = int(min(history.lengths.max(initial=1), self.model.config.user.history))
        rows = history.padded(max(width, 1))
        mask = rows >= 0
        items = self.item_vectors[np.maximum(rows, 0)]
        if self.user_tower is not None:
            return self.user_tower(items, mask, user_tokens)
        return self._by_torch(items, mask, user_tokens)

    def _by_torch(self, items: FloatArray, mask: BoolArray, user_tokens: IntArray | None) -> FloatArray:
        import torch

        tokens = None if user_tokens is None else torch.from_numpy(np.ascontiguousarray(user_tokens))
        with torch.inference_mode():
            tensors = torch.from_numpy(items), torch.from_numpy(mask)
            newest: torch.Tensor = self.model.user_tower(*tensors, tokens, newest=True)
        vectors: FloatArray = newest[:, -1].float().numpy()
        return vectors


@dataclass(frozen=True)
class FrozenQueryEncoder:
    """The space of a frozen backbone: a history is the decayed mean of its items' vectors, a text its own vector.

    Attributes:
        modality: What the backbone reads: "text" or "image".
        item_vectors: (N, D) the catalogue; None where histories are not to be encoded.
        space_id: The backbone's space.
        dim: D.
        backbones: Frozen backbones.
        decay: What a step further back in the history counts.
        history: The last so many items are read.
        texts: What encodes the texts of questions, where the backbone reads texts.
    """

    modality: str
    item_vectors: FloatArray | LiveVectors | None
    space_id: str
    dim: int
    backbones: BackboneLoader
    decay: float = 0.8
    history: int = 50
    texts: TextLoader = backbone_itself

    def __post_init__(self) -> None:
        came = self.dim if self.item_vectors is None else self.item_vectors.shape[1]
        if came != self.dim:
            raise SpaceError(f"space {self.space_id} has {self.dim} dimensions, the item vectors have {came}")

    def encode(self, queries: Queries) -> dict[str, FloatArray]:
        """See `QueryEncoder.encode`."""
        vectors = np.zeros((len(queries), self.dim), np.float32)
        if self.item_vectors is not None:
            steps = decayed(queries.history, self.decay, self.history)
            owner = steps.columns.row_of_value
            np.add.at(vectors, owner, self.item_vectors[steps.columns.values] * steps.values[:, None])
            vectors = _unit(vectors)
        return {self.space_id: _with_texts(vectors, queries, self)}

    def of_pieces(self, modality: str, pieces: Sequence[Piece]) -> FloatArray | None:
        """See `QueryEncoder.of_pieces`."""
        backbone: Any = self.backbones(modality) if modality == self.modality else None
        if backbone is None:
            return None
        vectors: FloatArray = backbone.encode(pieces, _PIECES)
        return vectors

    def of_texts(self, texts: Sequence[str]) -> FloatArray | None:
        """See `QueryEncoder.of_texts`."""
        encoder = self.texts() if self.modality == _TEXT else None
        return self.of_pieces(_TEXT, texts) if encoder is None else encoder.encode(texts, _PIECES)


def _with_texts(vectors: FloatArray, queries: Queries, encoder: QueryEncoder) -> FloatArray:
    """The vectors, turned towards the questions' texts where this space reads texts."""
    asked = [row for row, text in enumerate(queries.texts) if text]
    texts = encoder.of_texts([queries.texts[row] or "" for row in asked]) if asked else None
    if texts is not None:
        vectors[asked] = _unit(vectors[asked] + texts)
    return vectors


def _unit(vectors: FloatArray) -> FloatArray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: FloatArray = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit
