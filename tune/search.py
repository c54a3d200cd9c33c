"""Ray Tune over whole runs: a trial is `override(config, …)`, run to its evaluation, judged on validation alone."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search.optuna import OptunaSearch
from rich.table import Table

from recsys_ray.config import RunConfig, dump_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import RecsysError
from recsys_ray.core.on_ray import connected
from recsys_ray.core.progress import console, say
from recsys_ray.pipeline import run
from tune.spaces import Space

METRIC = "recall@10"
BEST_FILE = "best.yaml"
TRIALS_FILE = "trials.json"
# A trial only drives: any share of a CPU would keep training.workers = all CPUs from ever starting. Ray Tune wants some
# resource, so it is one byte of memory.
_NO_CPU: dict[str, float] = {"CPU": 0, "memory": 1}
# What a report has beside the metrics that a trial is judged by.
_NO_EXTRAS = {"evaluation.sample_users": 0, "evaluation.modalities": 0, "evaluation.refit": False}


def search(config: RunConfig, space: Space, trials: int, concurrent: int = 1) -> RunConfig:
    """Find the settings with the best fused validation recall@10 and write them to ``<storage>/best.yaml``.

    Artifacts that trials share (the dataset, features, channels whose settings are equal) are made once: every trial
    uses the same storage, where an artifact's id names all that made it.

    Args:
        config: The run to start from.
        space: What to vary.
        trials: How many configurations to try.
        concurrent: How many at a time.

    Returns:
        The best configuration.

    Raises:
        RecsysError: When every trial failed; each failure's text is in the message.
    """
    storage = Path(config.storage).absolute()
    config = override(config, {"storage": str(storage)})
    override(config, {path: dimension.domain().sample() for path, dimension in space.items()})  # wrong paths fail here
    with connected(config.ray.address, config.ray.num_cpus):
        results = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, base=config.model_dump(mode="json")), _NO_CPU),
            param_space={path: dimension.domain() for path, dimension in space.items()},
            tune_config=tune.TuneConfig(
                search_alg=OptunaSearch(metric=METRIC, mode="max", seed=config.training.seed),
                num_samples=trials,
                max_concurrent_trials=concurrent,
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(storage), verbose=0),
        ).fit()
    return _conclude(config, results, storage)


def _trial(changes: Mapping[str, Any], base: Mapping[str, Any]) -> None:
    """One whole run, in a process of its own; reports validation metrics, never test metrics."""
    config = override(RunConfig.parse(base), {**_NO_EXTRAS, **changes})
    fused = run(config, until="evaluate").require_report()["validation"]["fused"]
    tune.report({METRIC: fused[METRIC], "ndcg@10": fused["ndcg@10"], "recall@100": fused["recall@100"]})


def _conclude(config: RunConfig, results: tune.ResultGrid, storage: Path) -> RunConfig:
    """Write and show all trials, best first, and the best configuration."""
    for error in results.errors:
        say(f"a trial failed: {error}")
    rows = _rows(results)
    if not rows:
        raise RecsysError(f"all {len(results)} trials failed; the last said: {results.errors[-1]}")
    (storage / TRIALS_FILE).write_text(json.dumps(rows, indent=1) + "\n")
    _show(rows)
    best = override(config, rows[0]["settings"])
    (storage / BEST_FILE).write_text(dump_config(best))
    say(f"best: {METRIC} {rows[0][METRIC]:.4f} on validation; its configuration is {storage / BEST_FILE}")
    return best


def _rows(results: tune.ResultGrid) -> list[dict[str, Any]]:
    """The trials that finished, best first."""
    rows = []
    for place in range(len(results)):
        metrics, settings = results[place].metrics or {}, results[place].config or {}
        if METRIC in metrics:
            rows.append({"settings": settings, METRIC: metrics[METRIC], "recall@100": metrics["recall@100"]})
    return sorted(rows, key=lambda row: -row[METRIC])


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table("place", METRIC, "recall@100", "settings", title="Trials, by fused validation recall")
    for place, row in enumerate(rows, 1):
        settings = ", ".join(
            f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}"
            for path, value in row["settings"].items()
        )
        table.add_row(str(place), f"{row[METRIC]:.4f}", f"{row['recall@100']:.4f}", settings)
    console().print(table)
