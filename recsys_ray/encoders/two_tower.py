"""The one model: an item tower and a user tower over the same space; how it is built, saved, loaded and named."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recsys_ray.core.config import result_settings
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import Member, TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_tower import Attributes, FrozenFeatures, IdResidual, ItemTower, TrainedBackbone
from recsys_ray.encoders.members import ItemTowers, UserTowers
from recsys_ray.encoders.modality import ATTRIBUTES, ID, IMAGE, TEXT, Backbone, vectors_modality
from recsys_ray.encoders.user_tower import UserTower

WEIGHTS_FILE = "towers.safetensors"
SPEC_FILE = "tower.json"
BACKBONES = "backbones"  # folder of one sub-folder a modality


@dataclass(frozen=True)
class TowerSpec:
    """What the weights' shapes follow from, beside the configuration.

    Attributes:
        num_items: Rows of the id residual.
        num_tokens: Size of the item attribute vocabulary, padding included.
        num_numeric: Numeric attributes.
        num_user_tokens: Size of the user attribute vocabulary, padding included.
        feature_dims: Modality name to the length of its frozen features or precomputed vectors.
    """

    num_items: int
    num_tokens: int
    num_numeric: int
    num_user_tokens: int
    feature_dims: dict[str, int]


@dataclass(frozen=True)
class TrainBatch:
    """One training step: its distinct items, and what refers to them by position.

    Attributes:
        items: The M distinct items.
        history: Positions in `items`, right-aligned; -1 is padding.
        targets: What comes after each position of the history, as a position in `items`; -1 where nothing is learned.
            A target may stand at a padded position: what to show somebody without a history.
        negatives: Positions in `items`.
        user_tokens: User attribute tokens, 0 is padding; None when users have none.
        pairs: Positions in `items` of what is aligned, and of what it is aligned with.
        items_at_once: Items encoded together, see `encode_in_parts`; None is all.
    """

    items: ItemInputs
    history: Int[Tensor, "B H"]
    targets: Int[Tensor, "B H"]
    negatives: Int[Tensor, " n"]
    user_tokens: Int[Tensor, "B T"] | None = None
    pairs: Int[Tensor, "2 b"] = field(default_factory=lambda: torch.zeros((2, 0), dtype=torch.int64))
    items_at_once: int | None = None

    def to(self, device: torch.device) -> "TrainBatch":
        """The same batch on a device."""
        tokens = None if self.user_tokens is None else self.user_tokens.to(device)
        tensors = (self.history.to(device), self.targets.to(device), self.negatives.to(device))
        return TrainBatch(self.items.to(device), *tensors, tokens, self.pairs.to(device), self.items_at_once)


class TwoTower(nn.Module):
    """Item tower and user tower. Use `build` or `load_towers`.

    Every parameter is read inside the forward of the module that owns it, so that wrappers (DDP, DeepSpeed ZeRO 3)
    see each access when training goes through the forward of this root.
    """

    def __init__(self, config: TwoTowerConfig, spec: TowerSpec, item_tower: ItemTowers, user_tower: UserTowers) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        self.item_tower = item_tower
        self.user_tower = user_tower

    def forward(self, batch: TrainBatch) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What the loss reads, by member; the M parts of a vector have length 1 together.

        Returns:
            Queries at the P supervised positions (P, M, D), their targets (P, M, D), the negatives (n, M, D), the
            aligned pairs (2, b, M D), and how far the content heads are from the negatives (n,).
        """
        items, missed = encode_in_parts(self.item_tower, batch.items, batch.items_at_once)
        outputs = self.user_tower(gather(items, batch.history), batch.history >= 0, batch.user_tokens)
        supervised = batch.targets >= 0
        vectors = outputs[supervised], gather(items, batch.targets[supervised]), gather(items, batch.negatives)
        queries, targets, negatives = (one.unflatten(-1, (len(self.config.members), -1)) for one in vectors)
        return queries, targets, negatives, gather(items, batch.pairs), missed[batch.negatives]


def encode_in_parts(
    tower: ItemTowers, items: ItemInputs, size: int | None
) -> tuple[Float[Tensor, "m MD"], Float[Tensor, " m"]]:
    """`ItemTowers.encode`, `size` items at a time, whose activations are made again in the backward pass.

    Memory follows `size`, not the number of items, and the gradient is the same: gradient caching (Gao et al. 2021,
    arXiv:2101.06983). Items of like text length share a part, which saves the padding.
    """
    if size is None or len(items) <= size:
        return tower.encode(items)
    order = items.by_length()
    parts = [checkpoint(tower.encode, items.take(rows), use_reentrant=False) for rows in torch.split(order, size)]
    vectors, missed = (torch.cat(one) for one in zip(*parts, strict=True))
    back = order.argsort()
    return vectors[back], missed[back]


def gather(vectors: Float[Tensor, "m D"], rows: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape D"]:
    """The vectors at some rows; whatever for a negative one. An embedding look-up: its backward beats indexing's."""
    return F.embedding(rows.clamp(min=0), vectors)


def build(
    config: TwoTowerConfig,
    fields: Fields,
    num_items: int,
    feature_dims: Mapping[str, int],
) -> TwoTower:
    """New towers for a dataset.

    Args:
        config: The settings.
        fields: What the dataset's fields are used for.
        num_items: N.
        feature_dims: Modality name to the length of its frozen features, where it has any: "text", "image".

    Raises:
        ConfigError: When no configured modality is left for this dataset, or a backbone cannot be loaded.
    """
    spec = TowerSpec(
        num_items,
        fields.num_tokens,
        len(fields.numeric),
        fields.num_user_tokens,
        _all_dims(config, fields, feature_dims),
    )
    return _assemble(config, spec, {})


def save_towers(directory: Path, model: TwoTower, backbones: Mapping[str, Backbone]) -> str:
    """Write weights, settings and backbones into an existing directory; returns the space id.

    Args:
        directory: Gets `towers.safetensors`, `tower.json` and `backbones/<modality>/`.
        model: The trained towers.
        backbones: Modality name to the frozen backbone its features came from; trained ones are in the model.
    """
    from safetensors.torch import save_file

    trained = trained_backbones(model)
    for name, backbone in {**backbones, **trained}.items():
        backbone.save(directory / BACKBONES / name)
    save_file(_own_weights(model, trained), directory / WEIGHTS_FILE)
    ids = {name: backbone.id for name, backbone in backbones.items()}
    space = space_id(model, ids)
    written = {
        "space_id": space,
        "backbones": ids,
        "config": model.config.model_dump(mode="json"),
        "spec": asdict(model.spec),
    }
    (directory / SPEC_FILE).write_text(json.dumps(written, indent=1) + "\n")
    return space


def load_towers(directory: Path) -> TwoTower:
    """Read what `save_towers` wrote, ready to encode (evaluation mode).

    Raises:
        ArtifactError: When files are missing or do not fit each other.
    """
    from safetensors.torch import load_file

    written = _read_spec(directory)
    config = TwoTowerConfig.parse(written["config"], "tower.json")
    model = _assemble(config, TowerSpec(**written["spec"]), saved_backbones(directory))
    weights = load_file(directory / WEIGHTS_FILE)
    expected = set(_own_weights(model, trained_backbones(model)))
    if set(weights) != expected:
        different = ", ".join(sorted(set(weights) ^ expected))
        raise ArtifactError(f"{directory / WEIGHTS_FILE} does not fit {SPEC_FILE}; only one of them has: {different}")
    model.load_state_dict(weights, strict=False)
    return model.eval()


def read_space_id(directory: Path) -> str:
    """The space id that `save_towers` wrote."""
    return str(_read_spec(directory)["space_id"])


def space_id(model: TwoTower, backbone_ids: Mapping[str, str]) -> str:
    """The name of the vector space: a hash of settings, weights, D and the ids of the frozen backbones."""
    digest = hashlib.sha256()
    settings = [result_settings(model.config), asdict(model.spec), dict(backbone_ids)]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return f"towers-{model.config.width}-{digest.hexdigest()[:16]}"


def saved_backbones(directory: Path) -> dict[str, str]:
    """Modality name to the folder of its saved backbone, fit for `load_text_backbone` and `load_image_backbone`."""
    folder = directory / BACKBONES
    return {path.name: str(path) for path in sorted(folder.iterdir())} if folder.is_dir() else {}


def trained_backbones(model: TwoTower) -> dict[str, Any]:
    """Modality name to the backbone that is trained inside the model."""
    tower = model.item_tower.towers[0]
    pairs = zip(tower.names, tower.encoders, strict=True)
    return {name: encoder.backbone for name, encoder in pairs if isinstance(encoder, TrainedBackbone)}


def _all_dims(config: TwoTowerConfig, fields: Fields, feature_dims: Mapping[str, int]) -> dict[str, int]:
    """The frozen features that are configured and there, and the configured columns of vectors."""
    dims = {}
    for name, modality in ((TEXT, config.text), (IMAGE, config.image)):
        if modality is not None and modality.mode == "frozen" and name in feature_dims:
            dims[name] = feature_dims[name]
    for column in vector_columns(config, fields):
        dims[vectors_modality(column)] = fields.vectors[column]
    return dims


def vector_columns(config: TwoTowerConfig, fields: Fields) -> tuple[str, ...]:
    """The columns of precomputed vectors that the towers read.

    Raises:
        ConfigError: When a named column is no vector column of the dataset.
    """
    if config.vectors is None:
        return ()
    if config.vectors.columns == "auto":
        return tuple(fields.vectors)
    for column in config.vectors.columns:
        if column not in fields.vectors:
            allowed = ", ".join(fields.vectors) or "none: the dataset has no vector column"
            raise ConfigError("model.vectors.columns", column, allowed)
    return config.vectors.columns


def _assemble(config: TwoTowerConfig, spec: TowerSpec, folders: Mapping[str, str]) -> TwoTower:
    """Towers with fresh weights; trained backbones come from `folders` where given, else from the configuration."""
    items = [_item_tower(config, spec, folders, member) for member in config.members]
    users = [UserTower(config.user, config.dim, spec.num_user_tokens) for _ in config.members]
    return TwoTower(config, spec, ItemTowers(items), UserTowers(users))


def _item_tower(config: TwoTowerConfig, spec: TowerSpec, folders: Mapping[str, str], member: Member) -> ItemTower:
    encoders = _content_encoders(config, spec, folders) if member != "id" else {}
    if config.id is not None and member != "content":
        encoders[ID] = IdResidual(spec.num_items, config.dim)
    if not encoders:
        raise ConfigError(
            "model",
            f"no modality for the member {member!r}",
            "text, image, attributes, vectors or id that the data has",
        )
    return ItemTower(tuple(encoders), tuple(encoders.values()), config.modality_dropout, config.alone, config.dim)


def _content_encoders(config: TwoTowerConfig, spec: TowerSpec, folders: Mapping[str, str]) -> dict[str, nn.Module]:
    encoders: dict[str, nn.Module] = {}
    for name, modality in ((TEXT, config.text), (IMAGE, config.image)):
        if modality is not None and modality.trained:
            backbone = load_backbone(modality, folders.get(name))
            encoders[name] = TrainedBackbone(backbone, backbone.dim, config.dim)
    for name, num_features in spec.feature_dims.items():
        encoders[name] = FrozenFeatures(num_features, config.dim)
    if config.attributes is not None and (spec.num_tokens > 1 or spec.num_numeric):
        encoders[ATTRIBUTES] = Attributes(spec.num_tokens, spec.num_numeric, config.dim)
    return encoders


def _own_weights(model: TwoTower, trained: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state without the trained backbones, which are saved in folders of their own."""
    inside = tuple(
        f"item_tower.members.0.encoders.{column}.backbone."
        for column, name in enumerate(model.item_tower.towers[0].names)
        if name in trained
    )
    state = model.state_dict()
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if not name.startswith(inside)}


def _read_spec(directory: Path) -> dict[str, Any]:
    try:
        written: dict[str, Any] = json.loads((directory / SPEC_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / SPEC_FILE} cannot be read: {error}") from None
    return written
