"""Rank the whole catalogue for every validation and test user, and write the report."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import result_settings
from recsys_ray.core.errors import DataError
from recsys_ray.core.metrics import METRICS
from recsys_ray.core.on_ray import cluster_cpus
from recsys_ray.core.progress import say
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.contents import (
    SECTIONS_FILE,
    Details,
    Report,
    TrainingCurve,
    index_rows,
    load_sections,
)
from recsys_ray.evaluation.on_ray import replay_on_ray
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.ranks import RANKS_FILE, Ranks
from recsys_ray.evaluation.replay import Replay, block_size, pool, replay
from recsys_ray.evaluation.report import write_report
from recsys_ray.evaluation.summary import (
    Evaluation,
    FoldQuestions,
    Ranker,
    Replays,
    per_query,
    replay_folds,
    summarise,
)
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.ranker import REORDERED
from recsys_ray.stages.fitted import Fit, load_retriever
from recsys_ray.stages.fusion import load_without, parents_of
from recsys_ray.stages.towers import RECORDS_FILE
from recsys_ray.stages.work import Data, Work

VERSION = 3
VALIDATION_VERSION = 1
_SCORES_WORTH_RAY = 10_000_000_000  # about two minutes of one core; a cluster and its workers take some fifteen seconds


def evaluate(
    work: Work,
    data: Data,
    fits: Sequence[Fit],
    fusion: Fusion,
    fusion_artifact: Artifact,
    refits: Sequence[Fit] = (),
    parts: Sequence[Artifact] = (),
) -> Artifact:
    """Full ranking of validation and test, per channel and fused; report.json, report.html and ranks.parquet.

    Args:
        work: The run.
        data: The dataset.
        fits: What was fitted on the training events of each fold.
        fusion: Chosen on validation.
        fusion_artifact: Where it is.
        refits: What was fitted on train and validation of each fold; none where `evaluation.refit` is off.
        parts: What other stages measured, each with tables for the report.
    """
    config = work.config

    def write(directory: Path) -> Mapping[str, Any]:
        asked = [_fold_questions(work, data, fold, load_without(fusion_artifact, fits)) for fold in data.dataset.folds]
        num_queries = sum(len(fold.test) + len(fold.validation) for fold in asked)
        shards = _shards(work, fits, num_queries, data)
        replays = replay_folds(_rankers(work, fits, fusion, shards), asked)
        if refits:
            replays = replace(replays, refit=_replay_refits(work, data, refits, fusion, shards))
        done = summarise(replays, config.evaluation)
        sections = tuple(section for part in parts for section in load_sections(part.file(SECTIONS_FILE)))
        report = replace(_report(work, data, fits, done), sections=sections)
        write_report(directory, report, _details(work, data, fits, fusion))
        _ranks(data, replays, [fold.test.targets for fold in asked]).save(directory / RANKS_FILE)
        return {"fused": done.metrics["fused"].values}

    settings = {"evaluation": result_settings(config.evaluation), "name": config.name}
    parents = {
        **parents_of(data, [*fits, *refits]),
        "fusion": fusion_artifact,
        **{part.manifest.kind: part for part in parts},
    }
    return work.runner.run("report", VERSION, settings, parents, write, label="evaluate")


def validate(work: Work, data: Data, fits: Sequence[Fit], fusion: Fusion, fusion_artifact: Artifact) -> Artifact:
    """Full ranking of validation alone; the summary holds ranking to metric to mean. Test is never asked.

    Args:
        work: The run.
        data: The dataset.
        fits: What was fitted on the training events of each fold.
        fusion: Chosen on validation.
        fusion_artifact: Where it is.

    Raises:
        DataError: When the split has no validation.
    """
    settings = work.config.evaluation

    def write(_: Path) -> Mapping[str, Any]:
        asked = [_validation_questions(work, data, fold) for fold in data.dataset.folds]
        shards = _shards(work, fits, sum(map(len, asked)), data)
        ranked = zip(_rankers(work, fits, fusion, shards), asked, strict=True)
        done = pool([rank(questions) for rank, questions in ranked])
        if not done.num_queries:
            raise DataError(f"split.protocol={work.config.split.protocol} left no validation event to judge by")
        return {
            name: {metric: float(per_query(done, name, metric).mean()) for metric in METRICS} for name in done.ranks
        }

    chosen = {"max_users": settings.max_users, "seed": settings.seed}
    parents = {**parents_of(data, fits), "fusion": fusion_artifact}
    return work.runner.run("validation", VALIDATION_VERSION, chosen, parents, write, label="validate")


def _validation_questions(work: Work, data: Data, fold: Fold) -> Questions:
    settings = work.config.evaluation
    questions = Questions("validation", fold.validation, fold.train.item_counts(), data.user_tokens)
    return questions.sample(settings.max_users, settings.seed)


def _fold_questions(work: Work, data: Data, fold: Fold, without: Mapping[str, Fusion]) -> FoldQuestions:
    settings, counts, tokens = work.config.evaluation, fold.train.item_counts(), data.user_tokens
    test = Questions("test", fold.test, counts, tokens).sample(settings.max_users, settings.seed)
    validation = _validation_questions(work, data, fold)
    if not settings.sample_users:
        return FoldQuestions(test, validation)
    sample = test.sample(max(1, settings.sample_users // len(data.dataset.folds)), settings.seed)
    return FoldQuestions(test, validation, replace(sample, label="test, one channel less at a time", without=without))


def _replay_refits(work: Work, data: Data, refits: Sequence[Fit], fusion: Fusion, shards: int) -> Replay:
    settings = work.config.evaluation
    asked = [
        Questions("test, after the refit", fold.test, fold.train_validation.item_counts(), data.user_tokens)
        for fold in data.dataset.folds
    ]
    rankers = _rankers(work, refits, fusion, shards)
    return pool([rank(one.sample(settings.max_users, settings.seed)) for rank, one in zip(rankers, asked, strict=True)])


def _rankers(work: Work, fits: Sequence[Fit], fusion: Fusion, shards: int) -> Iterator[Ranker]:
    settings = work.config.evaluation
    scratch = Path(work.config.storage).absolute() / "scratch"
    for place, fit in enumerate(fits):
        if shards == 1:
            yield partial(replay, fit.retriever(fusion), config=settings)
        else:
            path = fit.describe(scratch / f"retriever-{place}.json", fusion)
            yield partial(replay_on_ray, load_retriever, path, config=settings, shards=shards)


def _shards(work: Work, fits: Sequence[Fit], num_queries: int, data: Data) -> int:
    """Into how many tasks each replay is cut; says what ranking will hold in memory."""
    settings = work.config.evaluation
    num_items, channels = len(data.dataset.item_ids), len(fits[0].channels)
    scores = num_items * channels * num_queries
    shards = settings.shards or 1
    if shards > 1 or (settings.shards is None and scores > _SCORES_WORTH_RAY):
        work.need_ray()
        shards = settings.shards or cluster_cpus()
    size = block_size(channels, work.config.fusion.depth, num_items, settings)
    where = "in this process" if shards == 1 else f"in each of {shards} Ray tasks"
    say(
        f"{scores / 1e9:.2g} billion scores {where}, {size} queries at a time within {settings.block_bytes >> 20} MiB "
        "(evaluation.block_bytes)"
    )
    return shards


def _ranks(data: Data, replays: Replays, asked: Sequence[Targets]) -> Ranks:
    return Ranks.of(replays.test, replays.refit, asked, data.dataset.user_ids, data.dataset.item_ids)


def _report(work: Work, data: Data, fits: Sequence[Fit], done: Evaluation) -> Report:
    config = work.config
    headers = {name: read_header(artifact.path) for name, artifact in fits[-1].channels.items()}
    return Report(
        dataset=config.name,
        users=len(data.dataset.user_ids),
        items=len(data.dataset.item_ids),
        protocol=config.split.protocol,
        seed=config.training.seed,
        numbers=done,
        warnings=tuple(data.artifact.summary["warnings"]),
        channels={name: {**header.config, "tuning": header.facts.get("tuning")} for name, header in headers.items()},
        left_out=fits[-1].left_out,
        index=index_rows(_index_summaries(fits[-1])),
        seconds=work.runner.seconds,
    )


def _method(fusion: Fusion) -> str:
    """How the lists are merged, for people."""
    if fusion.ranker is None:
        return fusion.method
    return f"{fusion.method}, then gradient-boosted trees put the first {REORDERED} in order"


def _details(work: Work, data: Data, fits: Sequence[Fit], fusion: Fusion) -> Details:
    return Details(
        data=data.artifact.summary,
        training=_curve(fits[-1]),
        index_notes={name: summary["note"] for name, summary in _index_summaries(fits[-1]).items()},
        fusion_method=_method(fusion),
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
