"""What a Pareto search compares: towers as trained, then every length of their vectors and every index over them."""

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna

from recsys_ray.config import RunConfig
from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.evaluation.questions import Questions
from recsys_ray.index.exact import EXACT, VECTORS_FILE, ExactIndex
from recsys_ray.index.faiss_index import FAISS_FILE, FaissIndex, build
from recsys_ray.index.prefix import PREFIX_FOLDER, PrefixIndex, cut, require_dim
from recsys_ray.index.spec import Index, candidates
from recsys_ray.pipeline import embedded
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.query_encoder import TowerQueryEncoder
from recsys_ray.stages.fitted import TOWERS, query_encoder
from tune.spaces import Choice, Space
from tune.study import distributions

DIM, FACTORY, PARAMETERS = "index.dim", "index.factory", "index.parameters"
K = 100
_QUESTIONS = 2000
_SHORTEST = 8


@dataclass(frozen=True)
class Trained:
    """Towers of one training, and the questions they are asked.

    Attributes:
        settings: What was varied in the training.
        config: The whole run.
        encoder: Encodes histories.
        vectors: (N, D) of the catalogue.
        space_id: Of both.
        questions: Validation of the last fold, a sample of them where they are many.
        num_bytes: All files of the towers, backbones included.
    """

    settings: dict[str, Any]
    config: RunConfig
    encoder: TowerQueryEncoder
    vectors: FloatArray
    space_id: str
    questions: Questions
    num_bytes: int


@dataclass(frozen=True)
class Candidate:
    """One way to search the vectors of one training.

    Attributes:
        trained: The towers.
        dim: How many numbers of each vector are searched; None is all.
        index: Over those; shared by candidates that differ in `parameters` alone.
        parameters: Search-time settings.
    """

    trained: Trained
    dim: int | None
    index: ExactIndex | FaissIndex
    parameters: str

    @property
    def settings(self) -> dict[str, Any]:
        """Dotted path to value, of all that tells it from other candidates."""
        index = {DIM: self.dim, FACTORY: self.index.factory, PARAMETERS: self.parameters}
        return {**self.trained.settings, **index}

    @property
    def config(self) -> RunConfig:
        """The whole run with these settings."""
        return override(self.trained.config, self.settings)

    def channel(self) -> NearestChannel:
        """As it would be served. Use it before the next one is made: both may share an index."""
        inner: Index = self.index
        if isinstance(self.index, FaissIndex) and self.parameters:
            inner = self.index.with_parameters(self.parameters)
        index = inner if self.dim is None else PrefixIndex(self.trained.vectors, inner)
        return NearestChannel("nearest", NearestConfig(), self.trained.space_id, index, {})

    def file_bytes(self) -> tuple[int, int]:
        """Bytes of the file that a search reads through, and of all files of the channel, as saved."""
        with tempfile.TemporaryDirectory() as folder:
            self.channel().save(Path(folder))
            sizes = {path: path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()}
        name = FAISS_FILE if isinstance(self.index, FaissIndex) else VECTORS_FILE
        searched = [size for path, size in sizes.items() if path.name == name and self._is_inner(path)]
        return searched[0], sum(sizes.values())

    def _is_inner(self, path: Path) -> bool:
        return self.dim is None or path.parent.name == PREFIX_FOLDER


def require_space(space: Space) -> None:
    """Check what a space says of the index.

    Raises:
        ConfigError: Naming the path.
    """
    for path, dimension in space.items():
        if path.startswith("index.") and (path not in (DIM, FACTORY) or not isinstance(dimension, Choice)):
            hint = "Each factory brings the search-time settings worth trying; other settings of the index are fixed."
            raise ConfigError(path, dimension.kind, f"{DIM} and {FACTORY}, each a choice", hint)


def trainings(space: Space, config: RunConfig, most: int) -> list[dict[str, Any]]:
    """What is trained: every combination where all are choices and `most` are enough, else so many drawn ones."""
    varied = {path: one for path, one in space.items() if not path.startswith("index.")}
    choices = [one.values for one in varied.values() if isinstance(one, Choice)]
    grid = list(itertools.product(*choices))
    if len(choices) == len(varied) and len(grid) <= most:
        return [dict(zip(varied, values, strict=True)) for values in grid]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=config.training.seed))
    drawn = [dict(study.ask(distributions(varied)).params) for _ in range(most)]
    return [one for place, one in enumerate(drawn) if one not in drawn[:place]]


def train(config: RunConfig, settings: Mapping[str, Any]) -> Trained:
    """Train and embed with some settings, or find that it was done before."""
    config = override(config, dict(settings))
    data, towers = embedded(config)
    fold = data.dataset.folds[-1]
    questions = Questions("validation", fold.validation, fold.train.item_counts(), data.user_tokens)
    sampled = questions.sample(min(config.evaluation.max_users or _QUESTIONS, _QUESTIONS), config.evaluation.seed)
    size = _num_bytes(towers.artifact)
    return Trained(dict(settings), config, query_encoder(towers), towers.vectors, towers.space_id, sampled, size)


def candidates_of(trained: Trained, space: Space) -> Iterator[Candidate]:
    """Every length and index over the vectors of one training."""
    for dim in _lengths(trained, space):
        vectors = trained.vectors if dim is None else cut(trained.vectors, dim)
        say(f"building indexes over {len(vectors):,} vectors of {vectors.shape[1]} numbers")
        for factory, sweep in _indexes(vectors, space):
            index: ExactIndex | FaissIndex
            if factory == EXACT:
                index = ExactIndex(vectors)
            else:
                index = build(vectors, factory, threads=trained.config.index.threads)
            for parameters in sweep:
                yield Candidate(trained, dim, index, parameters)


def need_towers(config: RunConfig) -> None:
    """Check that there is a channel to measure.

    Raises:
        ConfigError: When no channel searches the towers' vectors.
    """
    if not any(isinstance(one, NearestConfig) and one.space == TOWERS for one in config.channels.values()):
        allowed = "a channel of kind nearest over the towers"
        raise ConfigError("channels", sorted(config.channels), allowed, "A Pareto search measures that channel.")


def _lengths(trained: Trained, space: Space) -> Sequence[int | None]:
    """The lengths that are asked for, by default whole, half, a quarter and an eighth; the whole length is None."""
    whole = trained.vectors.shape[1]
    asked = space.get(DIM)
    if asked is None:
        return [None, *(whole // part for part in (2, 4, 8) if whole // part >= _SHORTEST)]
    lengths = [None if one is None else int(one) for one in asked.values] if isinstance(asked, Choice) else []
    for length in lengths:
        if length is not None:
            require_dim(length, trained.vectors)
    return list(dict.fromkeys(None if length == whole else length for length in lengths))


def _indexes(vectors: FloatArray, space: Space) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Factories, each with its search-time settings; one that is given and not known here has its own defaults."""
    known = {EXACT: ("",), **dict(candidates(len(vectors), vectors.shape[1], min(K, len(vectors))))}
    asked = space.get(FACTORY)
    if isinstance(asked, Choice):
        yield from ((str(factory), known.get(str(factory), ("",))) for factory in asked.values)
    else:
        yield from known.items()


def _num_bytes(artifact: Artifact) -> int:
    return sum(entry.num_bytes for entry in artifact.manifest.files.values())
