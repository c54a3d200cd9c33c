"""Choose the fusion on validation, then rank the whole catalogue for every test user and write the report."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import override, result_settings
from recsys_ray.evaluation.contents import Details, Report, TrainingCurve, index_rows
from recsys_ray.evaluation.on_ray import evaluate_on_ray
from recsys_ray.evaluation.replay import sample_targets
from recsys_ray.evaluation.report import write_report
from recsys_ray.evaluation.summary import Evaluation
from recsys_ray.evaluation.summary import evaluate as evaluate_folds
from recsys_ray.retrieval.candidates import Candidates, concatenate
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.tuning import tune
from recsys_ray.stages.channels import Fit, load_retriever, queries_of
from recsys_ray.stages.towers import RECORDS_FILE
from recsys_ray.stages.work import Data, Work

FUSION_VERSION = 1
REPORT_VERSION = 1
FUSION_FILE = "fusion.json"


def fuse(work: Work, data: Data, fits: Sequence[Fit]) -> tuple[Fusion, Artifact]:
    """Choose the weights of the channels on the validation of all folds together; test events are never seen."""
    config = work.config.fusion

    def write(directory: Path) -> Mapping[str, Any]:
        lists, targets = _validation_lists(work, data, fits)
        fusion = tune(lists, targets, config)
        fusion.save(directory / FUSION_FILE)
        return {"weights": fusion.weights, "chosen_on": fusion.chosen_on}

    # The seed draws the sample of validation queries.
    settings = {"fusion": result_settings(config), "seed": work.config.evaluation.seed}
    artifact = work.runner.run("fusion", FUSION_VERSION, settings, _parents(data, fits), write)
    return Fusion.load(artifact.file(FUSION_FILE)), artifact


def evaluate(work: Work, data: Data, fits: Sequence[Fit], fusion: Fusion, fusion_artifact: Artifact) -> Artifact:
    """Full ranking of validation and test, per channel and fused; report.json and report.html."""
    config = work.config

    def write(directory: Path) -> Mapping[str, Any]:
        done = _evaluate(work, data, fits, fusion)
        write_report(directory, _report(work, data, fits, done), _details(work, data, fits, fusion, done))
        return {"fused": done.metrics["fused"].values}

    settings = {"evaluation": result_settings(config.evaluation), "name": config.name}
    parents = {**_parents(data, fits), "fusion": fusion_artifact}
    return work.runner.run("report", REPORT_VERSION, settings, parents, write, label="evaluate")


def _evaluate(work: Work, data: Data, fits: Sequence[Fit], fusion: Fusion) -> Evaluation:
    settings, folds = work.config.evaluation, data.dataset.folds
    if settings.shards == 1:
        return evaluate_folds([fit.retriever(fusion) for fit in fits], folds, settings, data.user_tokens)
    work.need_ray()
    scratch = Path(work.config.storage).absolute() / "scratch"
    paths = [fit.describe(scratch / f"retriever-{place}.json", fusion) for place, fit in enumerate(fits)]
    return evaluate_on_ray(load_retriever, paths, folds, settings, data.user_tokens)


def _parents(data: Data, fits: Sequence[Fit]) -> dict[str, Artifact]:
    parents = {"dataset": data.artifact}
    for fit in fits:
        parents |= {f"{name}, {fit.scope.name}": artifact for name, artifact in fit.channels.items()}
        if fit.towers is not None:
            parents[f"towers, {fit.scope.name}"] = fit.towers.artifact
    return parents


def _validation_lists(work: Work, data: Data, fits: Sequence[Fit]) -> tuple[dict[str, Candidates], Ragged]:
    """Each channel's lists for a sample of validation queries of every fold, end to end, and what they should find."""
    config = work.config.fusion
    sample = override(work.config.evaluation, {"max_users": max(1, config.max_queries // len(fits))})
    lists: dict[str, list[Candidates]] = {}
    found: list[np.ndarray] = []
    for fit, fold in zip(fits, data.dataset.folds, strict=True):
        targets = sample_targets(fold.validation, sample)
        retriever = fit.retriever(Fusion.equal(list(fit.channels), config.depth))
        queries = retriever.encode(queries_of(targets, data.user_tokens))
        for name, candidates in retriever.retrieve(queries, config.depth).items():
            lists.setdefault(name, []).append(candidates)
        found += [targets.items[row] for row in range(len(targets))]
    return {name: concatenate(parts) for name, parts in lists.items()}, Ragged.of(found)


def _report(work: Work, data: Data, fits: Sequence[Fit], done: Evaluation) -> Report:
    config = work.config
    return Report(
        dataset=config.name,
        users=len(data.dataset.user_ids),
        items=len(data.dataset.item_ids),
        protocol=config.split.protocol,
        refit=False,
        seed=config.training.seed,
        metrics=done.metrics,
        validation=done.validation,
        buckets=done.buckets,
        index=index_rows(_index_summaries(fits[-1])),
        seconds=work.runner.seconds,
    )


def _details(work: Work, data: Data, fits: Sequence[Fit], fusion: Fusion, done: Evaluation) -> Details:
    return Details(
        num_queries=done.num_queries,
        gains=done.gains,
        data=data.artifact.summary,
        training=_curve(fits[-1]),
        index_notes={name: summary["note"] for name, summary in _index_summaries(fits[-1]).items()},
        fusion_method=fusion.method,
        fusion_weights=fusion.weights,
        config=work.config.model_dump(mode="json"),
    )


def _index_summaries(fit: Fit) -> dict[str, dict[str, Any]]:
    facts = {name: read_header(artifact.path).facts for name, artifact in fit.channels.items()}
    return {name: fact["index"] for name, fact in facts.items() if "index" in fact}


def _curve(fit: Fit) -> TrainingCurve | None:
    if fit.towers is None:
        return None
    records = json.loads(fit.towers.artifact.file(RECORDS_FILE).read_text())
    metric = "ndcg@10"
    validation = tuple(record["validation"][metric] for record in records if record["validation"])
    return TrainingCurve(tuple(record["loss"] for record in records), validation, metric)
