"""What each modality of the items is worth to the towers: measured once, shown by the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import result_settings
from recsys_ray.data.dataset import Fold
from recsys_ray.evaluation.contents import save_sections
from recsys_ray.evaluation.modalities import ByModality, by_modality, modality_sections
from recsys_ray.evaluation.questions import Questions
from recsys_ray.stages.features import Features
from recsys_ray.stages.fitted import Fit
from recsys_ray.stages.towers import Towers, item_inputs
from recsys_ray.stages.work import Data, Scope, Work

KIND = "modalities"
VERSION = 1
_SETTINGS = ("modalities", "seed", "head_share", "tail_share", "bootstrap_samples")


def modalities(work: Work, data: Data, features: Features, fits: Sequence[Fit]) -> list[Artifact]:
    """Ask the towers of every fold with each modality alone and with all, on a sample of the test questions.

    Returns:
        One artifact, with tables for the report (none where the items have one modality alone); nothing where no
        towers were trained or `evaluation.modalities` is 0.
    """
    settings = work.config.evaluation
    trained = [(fit.scope, fit.towers) for fit in fits if fit.towers is not None]
    if not settings.modalities or not trained:
        return []

    def write(directory: Path) -> Mapping[str, Any]:
        asked = [
            _ask(work, data, features, *towers, fold) for towers, fold in zip(trained, data.dataset.folds, strict=True)
        ]
        save_sections(directory, modality_sections(asked, settings))
        return {"items": asked[-1].items}

    parents = {"dataset": data.artifact, "features": features.artifact}
    parents |= {f"towers, {scope.name}": towers.artifact for scope, towers in trained}
    chosen = {name: value for name, value in result_settings(settings).items() if name in _SETTINGS}
    return [work.runner.run(KIND, VERSION, chosen, parents, write)]


def _ask(work: Work, data: Data, features: Features, scope: Scope, towers: Towers, fold: Fold) -> ByModality:
    settings = work.config.evaluation
    questions = Questions("test, by modality", fold.test, fold.train.item_counts(), data.user_tokens)
    sample = questions.sample(max(1, settings.modalities // len(data.dataset.folds)), settings.seed)
    model = towers.load()
    return by_modality(model, item_inputs(work, data, features, model, scope), sample, settings)
