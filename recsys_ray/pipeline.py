"""READ FIRST: a run, from raw files to a release. Each stage reads artifacts and makes one; see `recsys_ray.stages`."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys_ray.config import RunConfig
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.errors import ConfigError, RecsysError
from recsys_ray.core.progress import console, say
from recsys_ray.data.dataset import Dataset, load_dataset
from recsys_ray.evaluation.ranks import RANKS_FILE
from recsys_ray.evaluation.report import REPORT_HTML, REPORT_JSON, print_report, read_report
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release_pointer import read_pointer
from recsys_ray.stages import channels, dataset, evaluation, features, fusion, modalities, parity, release, towers
from recsys_ray.stages.features import Features
from recsys_ray.stages.fitted import Configs, Fit, need_towers
from recsys_ray.stages.gpus import require_gpus
from recsys_ray.stages.parity import ParityPlan
from recsys_ray.stages.runner import SECONDS, StageRunner
from recsys_ray.stages.towers import Towers
from recsys_ray.stages.work import Data, Scope, Watch, Work, fold_scopes, publish_scope, refit_scope
from recsys_ray.training.parity.curves import Parity

STAGES = ("prepare", "features", "train", "embed", "index", "fit", "evaluate", "publish", "run")
RELEASE_LINK = "release"


@dataclass(frozen=True)
class RunResult:
    """What a run left behind.

    Attributes:
        storage: Its folder.
        dataset: The dataset artifact.
        report: The content of report.json; None when the run ended before it.
        release: The release artifact; None when the run ended before it.
    """

    storage: Path
    dataset: Artifact
    report: dict[str, Any] | None = None
    release: Artifact | None = None

    def load_dataset(self) -> Dataset:
        """The catalogue, users and events."""
        return load_dataset(self.dataset)

    def require_report(self) -> dict[str, Any]:
        """The content of report.json.

        Raises:
            RecsysError: When the run ended before it.
        """
        if self.report is None:
            raise RecsysError("this run made no report: run it at least until evaluate")
        return self.report

    def require_release(self) -> Artifact:
        """The release.

        Raises:
            RecsysError: When the run ended before it.
        """
        if self.release is None:
            raise RecsysError("this run published no release: run it to the end")
        return self.release


def run(config: RunConfig, until: str = "run") -> RunResult:
    """Run the stages in order; what has been made before and would be the same is reused.

    Args:
        config: All settings.
        until: The last stage to run, one of `STAGES`; "run" is all of them.

    Raises:
        RecsysError: With what is wrong and what to do about it.
    """
    if until not in STAGES:
        raise ConfigError("until", until, ", ".join(STAGES))
    if until != "prepare":
        require_gpus(config)
    storage = Path(config.storage)
    with Work(config, StageRunner(storage / "artifacts")) as work:
        data = dataset.prepare(work)
        result = RunResult(storage, data.artifact)
        if until == "prepare":
            return result
        dataset.require_test(work, data)
        frozen = features.features(work, data)
        if until == "features":
            return result
        fits = _fit_all(work, data, frozen, fold_scopes(data.dataset), channels.configured(work), until)
        if until in ("train", "embed", "index", "fit"):
            return result
        fused, fused_artifact = fusion.fuse(work, data, fits)
        refits = _refit_all(work, data, frozen, fits) if config.evaluation.refit else []
        worth = modalities.modalities(work, data, frozen, fits)
        report = evaluation.evaluate(work, data, fits, fused, fused_artifact, refits, worth)
        result = _with_report(result, report)
        if until == "evaluate":
            return result
        served = _fit_to_serve(work, data, frozen, fits[-1], fused)
        published = release.publish(work, data, frozen, served, fused_artifact, report)
        return _with_release(result, published)


def validate(config: RunConfig, watch: Watch | None = None) -> dict[str, Any]:
    """Fit and fuse as `run` does, and rank validation alone; test is never asked, and only artifacts are written.

    Args:
        config: All settings.
        watch: Looks on while towers are trained.

    Returns:
        Ranking (a channel, or "fused") to metric to its mean.

    Raises:
        RecsysError: With what is wrong and what to do about it.
    """
    with Work(config, StageRunner(Path(config.storage) / "artifacts"), watch) as work:
        data = dataset.prepare(work)
        frozen = features.features(work, data)
        fits = _fit_all(work, data, frozen, fold_scopes(data.dataset), channels.configured(work))
        fused, fused_artifact = fusion.fuse(work, data, fits)
        summary = evaluation.validate(work, data, fits, fused, fused_artifact).summary
        return {name: value for name, value in summary.items() if name != SECONDS}


def embedded(config: RunConfig) -> tuple[Data, Towers]:
    """The dataset, and the towers trained on its last fold with what they make of the catalogue.

    Raises:
        RecsysError: With what is wrong and what to do about it.
    """
    with Work(config, StageRunner(Path(config.storage) / "artifacts")) as work:
        data = dataset.prepare(work)
        frozen = features.features(work, data)
        scope = fold_scopes(data.dataset)[-1]
        return data, towers.embed(work, data, frozen, towers.train(work, data, frozen, scope), scope)


def verify_parity(config: RunConfig, plan: ParityPlan) -> Parity:
    """Train a few steps of the run on one worker and on several, and compare losses and gradients at each.

    Args:
        config: All settings.
        plan: Steps, engines and workers.

    Raises:
        RecsysError: When it cannot be measured; a difference is in the result.
    """
    with Work(config, StageRunner(Path(config.storage) / "artifacts")) as work:
        data = dataset.prepare(work)
        return parity.verify_parity(work, data, features.features(work, data), fold_scopes(data.dataset)[0], plan)


def _fit_all(
    work: Work, data: Data, frozen: Features, scopes: list[Scope], configs: Configs, until: str = "fit"
) -> list[Fit]:
    return channels.agreed([_fit_scope(work, data, frozen, scope, configs, until) for scope in scopes])


def _fit_scope(work: Work, data: Data, frozen: Features, scope: Scope, configs: Configs, until: str) -> Fit:
    """Towers, their vectors and the channels on one scope of events, as far as `until` says."""
    trained = None
    if need_towers(configs):
        artifact = towers.train(work, data, frozen, scope)
        if until == "train":
            return Fit(scope, None, {})
        trained = towers.embed(work, data, frozen, artifact, scope)
        if until == "embed":
            return Fit(scope, trained, {})
    wanted = channels.indexed(configs) if until == "index" else configs
    return channels.fit(work, data, frozen, trained, scope, wanted)


def _refit_all(work: Work, data: Data, frozen: Features, fits: list[Fit]) -> list[Fit]:
    """A second fit of every fold, on train and validation; published with `publish.fit_on` = refit, it is reused."""
    scopes = [refit_scope(data.dataset, fold, _epochs(fit)) for fold, fit in enumerate(fits)]
    refits = [
        _fit_scope(work, data, frozen, scope, fit.configs(), "fit") for scope, fit in zip(scopes, fits, strict=True)
    ]
    return channels.agreed(refits)


def _fit_to_serve(work: Work, data: Data, frozen: Features, measured: Fit, fusion: Fusion) -> Fit:
    """A second fit on the events that `publish.fit_on` names; "strict" serves the last fold's fit, as measured.

    Either way without the channels that the fusion does not hear.
    """
    fit_on, heard = work.config.publish.fit_on, channels.heard(measured, fusion)
    if fit_on == "strict":
        return heard
    scope = publish_scope(data.dataset, fit_on, _epochs(heard))
    return _fit_scope(work, data, frozen, scope, heard.configs(), "fit")


def _epochs(measured: Fit) -> int | None:
    """How long the second fit trains: as long as the measured fit's best epoch."""
    trained = measured.towers
    return None if trained is None else int(trained.artifact.summary["best_epoch"])


def _with_report(result: RunResult, report: Artifact) -> RunResult:
    """Put the report where people look for it, and show it."""
    for name in (REPORT_JSON, REPORT_HTML, RANKS_FILE):
        aside = result.storage / f".{name}.part"
        shutil.copyfile(report.file(name), aside)
        aside.rename(result.storage / name)
    print_report(read_report(result.storage / REPORT_JSON), console())
    say(f"report: {result.storage / REPORT_JSON}, to look at: {result.storage / REPORT_HTML}")
    return replace(result, report=json.loads((result.storage / REPORT_JSON).read_text()))


def _with_release(result: RunResult, published: Artifact) -> RunResult:
    """Point STORAGE/release at the new release, in one step."""
    aside = result.storage / f".{RELEASE_LINK}.part"
    aside.unlink(missing_ok=True)
    aside.symlink_to(published.path.relative_to(result.storage))
    aside.rename(result.storage / RELEASE_LINK)
    say(f"release: {result.storage / RELEASE_LINK} ({published.id}); {_next(result.storage, published)}")
    return replace(result, release=published)


def _next(storage: Path, published: Artifact) -> str:
    """What to type to serve a new release: one that was activated goes on being served until another one is."""
    pointer = read_pointer(published.path.parent)
    if pointer is None or pointer.id == published.id:
        return f"serve it: recsys-ray serve {storage}"
    return f"{pointer.id} stays active until you type: recsys-ray releases activate {storage} {published.id}"
