"""Ray Tune over whole runs: a trial is `override(config, …)`, run to its validation, which alone judges it.

Two measures are at work, and they are not mixed. While a trial trains, ASHA compares the towers' validation ndcg@10
with that of other trials after as many epochs, and stops what falls behind. A trial that is not stopped goes on through
channels and fusion to the fused validation metrics: the choice, and what Optuna learns from, is by those alone.
"""

import fcntl
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import Trial
from ray import PlacementGroupID, tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup, get_current_placement_group

from recsys_ray.config import RunConfig
from recsys_ray.core.artifacts import artifact_id, digest_files
from recsys_ray.core.config import override, result_settings
from recsys_ray.core.errors import ConfigError, RecsysError
from recsys_ray.core.on_ray import connected
from recsys_ray.core.progress import say
from recsys_ray.data.prepare import input_files
from recsys_ray.pipeline import validate
from recsys_ray.stages.work import FIRST_FOLD
from recsys_ray.training.progress import MEASURE, EpochRecord
from tune.results import conclude
from tune.spaces import Space, changes_training, longest_training, require_fit
from tune.study import METRIC, begun, cut_trials, distributions, importances, open_study, rows, tell

FOLDER, JOURNAL = "tune", "journal.jsonl"
GRACE_EPOCHS, REDUCTION = 3, 3
_EPOCH, _TOWERS, _FAILURE = "epoch", f"towers_{MEASURE}", "failure"
# A trial only drives: any share of a CPU would keep training.workers = all CPUs from ever starting. Ray Tune wants some
# resource, so it is one byte of memory.
_NO_CPU: dict[str, float] = {"CPU": 0, "memory": 1}
# What a trial is not judged by.
NO_EXTRAS = {"evaluation.sample_users": 0, "evaluation.modalities": 0, "evaluation.refit": False}


def search(config: RunConfig, space: Space, trials: int, concurrent: int = 1, grace: int = GRACE_EPOCHS) -> RunConfig:
    """Find the settings with the best fused validation recall@10 and write them to ``<storage>/best.yaml``.

    Artifacts that trials share (the dataset, features, channels whose settings are equal) are made once: every trial
    uses the same storage, where an artifact's id names all that made it. The same call again goes on with a search
    that was cut: finished trials stand, cut ones go on from their artifacts and checkpoints. With more trials it
    goes on from those there are.

    Args:
        config: The run to start from.
        space: What to vary.
        trials: How many configurations to try, those of earlier calls with the same run and space included.
        concurrent: How many at a time.
        grace: Epochs that every trial trains before it can be stopped.

    Returns:
        The best configuration.

    Raises:
        ConfigError: When the space does not fit, or another process is searching it.
        RecsysError: When no trial ran to its end; each failure's text is in the message.
        KeyboardInterrupt: When it was stopped before the last trial.
    """
    storage = Path(config.storage).absolute()
    config = override(config, {"storage": str(storage)})
    require_fit(space, config)
    folder = storage / FOLDER / _key(config, space)
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        study = open_study(folder / JOURNAL, config.training.seed)
        left = trials - begun(study, space)
        if left > 0:
            say(f"searching {', '.join(space)}: {left} of {trials} trials to go")
            _run(config, space, study, left, concurrent, _scheduler(config, space, grace))
        else:
            say(f"all {trials} trials of this search are done: these are their results")
        if trials > begun(study, space):
            raise KeyboardInterrupt
        return conclude(config, space, rows(study), importances(study), storage)


class StudySearcher(Searcher):
    """Ray Tune asks a study what to try next and tells it what came of it; the study's journal is all its state.

    Ray's own Optuna searcher keeps one metric for epochs and ends; here they are two.
    """

    def __init__(self, study: optuna.Study, space: Space) -> None:
        super().__init__()
        self._study, self._distributions = study, distributions(space)
        self._cut = cut_trials(study, space)
        self._trials: dict[str, Trial] = {}

    def suggest(self, trial_id: str) -> dict[str, Any]:
        """The settings of the next trial; those that were cut come first."""
        trial = self._cut.pop(0) if self._cut else self._study.ask(self._distributions)
        self._trials[trial_id] = trial
        say(f"trial {trial.number + 1} begins: {', '.join(f'{path}={value}' for path, value in trial.params.items())}")
        return dict(trial.params)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note an epoch."""
        if _EPOCH in result:
            self._note(self._trials[trial_id], result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Close the trial; one that ends without a word was interrupted, and goes on another time."""
        if result is None and not error:
            return
        trial, result = self._trials.pop(trial_id), result or {}
        if _EPOCH in result:
            self._note(trial, result)
        failure = "it crashed: see the lines above" if error else str(result.get(_FAILURE, ""))
        metrics = result if METRIC in result else None
        tell(self._study, trial, metrics, float(result.get("time_total_s", 0.0)), failure)
        said = failure or (f"{METRIC} {metrics[METRIC]:.4f}" if metrics else f"stopped at epoch {result.get(_EPOCH)}")
        say(f"trial {trial.number + 1} ends: {said}")

    def save(self, checkpoint_path: str) -> None:
        """Nothing beside the journal, but Ray Tune wants a file."""
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def _note(self, trial: Trial, result: Mapping[str, Any]) -> None:
        seen = self._study.trials[trial.number].intermediate_values
        if result[_EPOCH] not in seen:
            trial.report(result[_TOWERS], step=result[_EPOCH])


def _key(config: RunConfig, space: Space) -> str:
    """Names the search: the same run on the same data under the same space."""
    settings = {"run": result_settings(config), "space": {path: one.model_dump() for path, one in space.items()}}
    return artifact_id("tune", 1, settings, {}, digest_files(input_files(config.data, config.split)))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError("tune", str(folder), "one search at a time", "Another process is at it.") from None
        yield


def _scheduler(config: RunConfig, space: Space, grace: int) -> TrialScheduler:
    """ASHA where trials train towers of their own; where they share one training there is nothing to stop."""
    if not changes_training(space):
        return FIFOScheduler()  # type: ignore[no-untyped-call]
    return ASHAScheduler(
        time_attr=_EPOCH,
        metric=_TOWERS,
        mode="max",
        max_t=max(longest_training(space, config), grace),
        grace_period=grace,
        reduction_factor=REDUCTION,
        stop_last_trials=False,  # who trained to the end is judged by what it was trained for
    )


def _run(
    config: RunConfig,
    space: Space,
    study: optuna.Study,
    trials: int,
    concurrent: int,
    scheduler: TrialScheduler,
) -> None:
    folder = Path(config.storage) / FOLDER / "ray"  # Ray Tune's own notes: nothing is read from them
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(scheduler, ASHAScheduler):
        _recall(scheduler, study)
    # Ray Train frees the CPUs of a stopped trial by asking the dashboard whether its controller still lives.
    dashboard = isinstance(scheduler, ASHAScheduler) and config.training.workers > 0
    with connected(config.ray.address, config.ray.num_cpus, dashboard=dashboard) as cluster:
        alone = cluster.private and concurrent == 1
        trial = tune.with_parameters(_trial, base=config.model_dump(mode="json"), alone=alone)
        tuner = tune.Tuner(
            tune.with_resources(trial, _NO_CPU),
            tune_config=tune.TuneConfig(
                search_alg=StudySearcher(study, space),
                scheduler=scheduler,
                num_samples=trials,
                max_concurrent_trials=concurrent,
            ),
            run_config=tune.RunConfig(name="ray", storage_path=str(folder.parent), verbose=0),
        )
        with redirect_stdout(StringIO()):  # it points people to its own notes, whatever its verbosity
            results = tuner.fit()
    for error in results.errors:
        say(f"a trial crashed: {error}")


def _recall(scheduler: ASHAScheduler, study: optuna.Study) -> None:
    """Tell a new scheduler the epochs of trials that ended before, so that it compares with them too."""
    for row in rows(study):
        if row.status != "running":
            told: Any = SimpleNamespace(trial_id=f"before-{row.trial}")
            controller: Any = None
            scheduler.on_trial_add(controller, told)
            for epoch, value in row.epochs.items():
                scheduler.on_trial_result(controller, told, {_EPOCH: epoch, _TOWERS: value})


def _free_what_is_left() -> None:
    """Give back the CPUs that a stopped trial's workers had; only where nobody else is in the cluster.

    Ray Train's own cleaner cannot do it where there are several clusters on the machine: it does not know which is its.
    """
    own = get_current_placement_group()  # Ray Tune gives each trial one
    for group, state in placement_group_table().items():
        if state["state"] != "REMOVED" and (own is None or group != own.id.hex()):
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _trial(changes: Mapping[str, Any], base: Mapping[str, Any], alone: bool) -> None:
    """One whole run, in a process of its own; reports epochs of the first fold, then the fused validation metrics."""
    if alone:
        _free_what_is_left()
    config = override(RunConfig.parse(base), {**NO_EXTRAS, **changes})
    best = 0.0

    def watch(scope: str, record: EpochRecord) -> None:
        nonlocal best
        if scope == FIRST_FOLD and record.validation:
            best = max(best, record.validation[MEASURE])
            tune.report({_EPOCH: record.epoch, _TOWERS: record.validation[MEASURE]})

    try:
        fused = validate(config, watch)["fused"]
    except RecsysError as error:
        tune.report({_FAILURE: str(error), _TOWERS: best})
        return
    tune.report({**fused, _TOWERS: best})
