"""Write, read and print an evaluation report: report.json for programs, report.html and a text table for people."""

import json
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from recsys_ray.core.errors import ArtifactError
from recsys_ray.evaluation.contents import Details, Report, Section
from recsys_ray.evaluation.page import BUCKET_WORDS, render
from recsys_ray.evaluation.replay import FUSED
from recsys_ray.evaluation.sections import cell, number, ranking_order, sections
from recsys_ray.evaluation.summary import LIST_METRICS, Scores

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
_BUCKET_METRIC = "recall@100"
_TERMINAL_METRICS = ("recall@10", "ndcg@10", "recall@100", *LIST_METRICS)  # fit 80 columns


def write_report(directory: Path, report: Report, details: Details) -> None:
    """Write report.json and report.html into an existing directory."""
    text = json.dumps(report.to_json(), indent=1, allow_nan=False)
    (directory / REPORT_JSON).write_text(text + "\n")
    (directory / REPORT_HTML).write_text(render(report, details), encoding="utf-8")


def read_report(path: Path) -> Report:
    """Read report.json.

    Raises:
        ArtifactError: When the file is missing or is no report.
    """
    try:
        return Report.from_json(json.loads(path.read_text()))
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing: run `recsys-ray evaluate`") from None
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path} is not a report of this version: {error!r}; evaluate again") from None


def print_report(report: Report, to: Console | None = None) -> None:
    """The report as tables in the terminal, warnings first."""
    out = to or Console()
    for warning in report.warnings:
        out.print(f"Warning: {warning}", style="yellow", markup=False)
    for name, reason in report.left_out.items():
        out.print(f"channel {name} is left out: {reason}", markup=False)
    out.print(_metrics_table(report))
    out.print(_buckets_table(report))
    for section in sections(report):
        out.print(section_table(section))


def section_table(section: Section) -> Table:
    """A section for the terminal."""
    first, *others = section.columns
    table = _table(section.heading, section.text, first)
    for column in others:
        table.add_column(column.replace(", ", "\n").replace("@", "\n@"), justify="right", overflow="fold")
    for name, *values in section.rows:
        table.add_row(*map(cell, (name, *values)), style="bold" if name == FUSED else None)
    return table


def _metrics_table(report: Report) -> Table:
    title = f"{report.dataset}: {report.users:,} users, {report.items:,} items, {report.protocol}"
    table = _table(title, "full ranking of the catalogue, test events, fitted on train; novelty in bits")
    for metric in _TERMINAL_METRICS:
        table.add_column(metric.replace("@", "\n@"), justify="right", no_wrap=True)
    metrics = report.numbers.metrics
    for name in ranking_order(metrics):
        values = (number(metrics[name].values[metric], metric) for metric in _TERMINAL_METRICS)
        table.add_row(name, *values, style="bold" if name == FUSED else None)
    return table


def _buckets_table(report: Report) -> Table:
    table = _table(f"{_BUCKET_METRIC} by popularity of the hidden item", "n: how many hidden items")
    for name, bucket in report.numbers.buckets.items():
        table.add_column(f"{BUCKET_WORDS[name][0].lower()}\nn = {bucket.n:,}", justify="right")
    for name in ranking_order(report.numbers.metrics):
        values = (_bucket_number(bucket.scores[name]) for bucket in report.numbers.buckets.values())
        table.add_row(name, *values, style="bold" if name == FUSED else None)
    return table


def _table(title: str, caption: str, first: str = "source") -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=SIMPLE_HEAD)
    table.add_column(first, overflow="fold")
    return table


def _bucket_number(scores: Scores | None) -> str:
    return number(None if scores is None else scores.values[_BUCKET_METRIC])
