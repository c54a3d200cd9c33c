"""Choose how the channels' lists are merged, on validation; test events are never seen."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import override, result_settings
from recsys_ray.evaluation.questions import Questions
from recsys_ray.retrieval.candidates import Candidates, concatenate
from recsys_ray.retrieval.exploration import Exploration
from recsys_ray.retrieval.fusion import Fusion, FusionConfig
from recsys_ray.retrieval.rank_tuning import Known, add_ranker
from recsys_ray.retrieval.ranker import log_popularity
from recsys_ray.retrieval.tuning import tune
from recsys_ray.stages.fitted import Fit, impersonal
from recsys_ray.stages.work import Data, Work

VERSION = 7
FUSION_FILE = "fusion.json"
WITHOUT_FOLDER = "without"


def fuse(work: Work, data: Data, fits: Sequence[Fit]) -> tuple[Fusion, Artifact]:
    """Choose the weights of the channels on the validation of all folds together; test events are never seen.

    Where the report says what each channel contributes, the others' weights without it are chosen the same way.
    """
    config, contributions = work.config.fusion, work.config.evaluation.sample_users > 0

    def write(directory: Path) -> Mapping[str, Any]:
        lists, targets = _validation_lists(work, data, fits)
        known = _known(data, fits)
        fusion = add_ranker(tune(lists, targets, config), lists, targets, config, known)
        fusion = exploring(fusion, config, data.dataset.folds[0].train.item_counts())
        fusion.save(directory / FUSION_FILE)
        if contributions and len(lists) > 1:
            _save_without(directory / WITHOUT_FOLDER, lists, targets, fusion, config, known)
        return {"weights": fusion.weights, "ranker": fusion.ranker is not None, "chosen_on": fusion.chosen_on}

    settings = {
        "fusion": result_settings(config),
        "contributions": contributions,
        "seed": work.config.evaluation.seed,  # of the sample of validation queries
    }
    artifact = work.runner.run("fusion", VERSION, settings, parents_of(data, fits), write)
    return Fusion.load(artifact.file(FUSION_FILE)), artifact


def exploring(fusion: Fusion, config: FusionConfig, item_counts: IntArray) -> Fusion:
    """The same fusion with the configured quota for items that are new by (N,) counts of events."""
    return fusion.model_copy(update={"exploration": Exploration.of(config.exploration, item_counts)})


def load_without(artifact: Artifact, fits: Sequence[Fit]) -> dict[str, Fusion]:
    """Channel to the fusion of all others, of the artifact that `fuse` made; empty where it made none."""
    files = {name: artifact.path / WITHOUT_FOLDER / f"{name}.json" for name in fits[0].channels}
    return {name: Fusion.load(file) for name, file in files.items() if file.is_file()}


def parents_of(data: Data, fits: Sequence[Fit]) -> dict[str, Artifact]:
    """All that was fitted, for a stage that ranks with it: role to artifact."""
    parents = {"dataset": data.artifact}
    for fit in fits:
        parents |= {f"{name}, {fit.scope.name}": artifact for name, artifact in fit.channels.items()}
        if fit.towers is not None:
            parents[f"towers, {fit.scope.name}"] = fit.towers.artifact
    return parents


def _validation_lists(work: Work, data: Data, fits: Sequence[Fit]) -> tuple[dict[str, Candidates], Ragged]:
    """Each channel's lists for a sample of validation queries of every fold, end to end, and what they should find."""
    config = work.config.fusion
    most = max(1, config.max_queries // len(fits))
    lists: dict[str, list[Candidates]] = {}
    found: list[np.ndarray] = []
    for fit, fold in zip(fits, data.dataset.folds, strict=True):
        asked = Questions("validation", fold.validation, fold.train.item_counts(), data.user_tokens)
        asked = asked.sample(most, work.config.evaluation.seed)
        retriever = fit.retriever(Fusion.equal(list(fit.channels), config.depth))
        for name, candidates in retriever.retrieve(retriever.encode(asked.queries()), config.depth).items():
            lists.setdefault(name, []).append(candidates)
        found += [asked.targets.items[row] for row in range(len(asked))]
    return {name: concatenate(parts) for name, parts in lists.items()}, Ragged.of(found)


def _known(data: Data, fits: Sequence[Fit]) -> Known:
    """Popularity before validation, where it is one for all queries: several folds have one each."""
    folds = data.dataset.folds
    popularity = log_popularity(folds[0].train.item_counts()) if len(folds) == 1 else np.zeros(0, np.float32)
    return Known(popularity, impersonal(fits[-1]))


def _save_without(
    folder: Path,
    lists: Mapping[str, Candidates],
    targets: Ragged,
    fusion: Fusion,
    config: FusionConfig,
    known: Known,
) -> None:
    """For each channel, the fusion of all others: weights and ranker chosen anew, method and temperatures kept."""
    folder.mkdir()
    for left_out in lists:
        others = {name: candidates for name, candidates in lists.items() if name != left_out}
        if config.weights and not any(config.weights[name] for name in others):
            continue  # given weights hear nobody else
        kept = {
            "method": fusion.method,
            "ranker": fusion.ranker is not None,
            "temperatures": {name: (value,) for name, value in fusion.temperatures.items() if name in others},
            "weights": config.weights and {name: config.weights[name] for name in others},
        }
        alike = override(config, kept)
        add_ranker(tune(others, targets, alike), others, targets, alike, known).save(folder / f"{left_out}.json")
