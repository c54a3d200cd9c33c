"""The state of a search: an Optuna study in a journal, a file of JSON lines that is only ever appended to.

Everything that is known of a search is in it, trial by trial and epoch by epoch, as soon as it is known. So a driver
may die at any moment, and nothing has to be unpickled to go on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from tune.spaces import Space

METRIC = "recall@10"
METRICS = (METRIC, "ndcg@10", "recall@100")
"""What is kept of a trial's fused validation metrics; the first is what the search maximises."""
FINISHED, STOPPED, FAILED, RUNNING = "finished", "stopped", "failed", "running"
Status = Literal["finished", "stopped", "failed", "running"]
_STATUS: dict[TrialState, Status] = {
    TrialState.COMPLETE: "finished",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}
_ENOUGH = 20
_METRICS, _SECONDS, _FAILURE = "metrics", "seconds", "failure"


@dataclass(frozen=True)
class Row:
    """One trial.

    Attributes:
        trial: Its number, from 1, in the order they were begun.
        status: "finished", "stopped" early, "failed", or "running".
        settings: Dotted path to value.
        metrics: Fused on validation; empty unless finished.
        epochs: The towers' validation ndcg@10 by epoch from 1, as far as it was trained in this trial.
        seconds: Of the whole trial; None while it runs.
        failure: Why it failed.
    """

    trial: int
    status: Status
    settings: dict[str, Any]
    metrics: dict[str, float] = field(default_factory=dict)
    epochs: dict[int, float] = field(default_factory=dict)
    seconds: float | None = None
    failure: str = ""


def open_study(path: Path, seed: int) -> optuna.Study:
    """The study of a journal, a new one where there is none.

    Args:
        path: The journal.
        seed: Of the sampler; what was asked before moves it on, so that nothing is drawn twice.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    study.sampler = TPESampler(seed=seed + len(study.trials), constant_liar=True)
    return study


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """As Optuna reads a space."""
    return {path: dimension.distribution() for path, dimension in space.items()}


def cut_trials(study: optuna.Study, space: Space) -> list[Trial]:
    """The trials that a driver left behind when it died, to go on with; one without its settings is given up."""
    found = []
    for frozen in study.get_trials(states=(TrialState.RUNNING,)):
        if frozen.params.keys() == space.keys():
            found.append(Trial(study, frozen._trial_id))
        else:
            study.tell(frozen.number, state=TrialState.FAIL)
    return found


def begun(study: optuna.Study, space: Space) -> int:
    """How many trials were begun and do not wait to go on."""
    return sum(trial.state.is_finished() and trial.params.keys() == space.keys() for trial in study.trials)


def tell(study: optuna.Study, trial: Trial, metrics: Mapping[str, float] | None, seconds: float, failure: str) -> None:
    """Close a trial: finished with metrics, failed with a reason, else stopped early."""
    trial.set_user_attr(_SECONDS, round(seconds, 3))
    if failure:
        trial.set_user_attr(_FAILURE, failure)
        study.tell(trial, state=TrialState.FAIL)
    elif metrics is None:
        study.tell(trial, state=TrialState.PRUNED)
    else:
        trial.set_user_attr(_METRICS, {name: metrics[name] for name in METRICS})
        study.tell(trial, metrics[METRIC])


def rows(study: optuna.Study) -> list[Row]:
    """All trials: the finished ones, best first, then those stopped early, the longest trained first, then the rest."""
    return sorted(_rows(study), key=_place)


def _rows(study: optuna.Study) -> Iterator[Row]:
    for trial in study.trials:
        if trial.params:
            yield _row(trial)


def _row(trial: FrozenTrial) -> Row:
    kept = trial.user_attrs
    return Row(
        trial.number + 1,
        _STATUS.get(trial.state, "running"),
        trial.params,
        kept.get(_METRICS, {}),
        dict(sorted(trial.intermediate_values.items())),
        kept.get(_SECONDS),
        kept.get(_FAILURE, ""),
    )


def _place(row: Row) -> tuple[int, float, float]:
    order = (FINISHED, STOPPED, RUNNING, FAILED).index(row.status)
    best_epoch = max(row.epochs.values(), default=0.0)
    return order, -row.metrics.get(METRIC, float(len(row.epochs))), -best_epoch


def importances(study: optuna.Study) -> dict[str, float]:
    """Setting to its share in deciding whether a trial is among the best quarter; empty with fewer than 20 trials.

    PED-ANOVA, Watanabe, Bansal and Hutter 2023.
    """
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    if len(finished) < _ENOUGH:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=0.25)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {str(path): float(share) for path, share in shares.items()}
