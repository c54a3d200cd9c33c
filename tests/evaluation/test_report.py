import html.parser
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.metrics import METRICS
from recsys_ray.evaluation.contents import Details, Report, TrainingCurve, finite, index_rows
from recsys_ray.evaluation.page import verdict
from recsys_ray.evaluation.replay import FUSED, EvaluationConfig, replay
from recsys_ray.evaluation.report import REPORT_HTML, REPORT_JSON, print_report, read_report, write_report
from recsys_ray.evaluation.summary import Gain, summarise

INDEX = {
    "towers": {
        "factory": "SQfp16",
        "parameters": "",
        "k": 100,
        "recall": 0.995,
        "queries_per_s": 2000.0,
        "note": "the fastest",
        "measured": [
            {
                "factory": "exact",
                "parameters": "",
                "recall": 1.0,
                "queries_per_s": 900.0,
                "num_bytes": 4000,
                "build_s": 0.0,
            },
            {
                "factory": "SQfp16",
                "parameters": "",
                "recall": 0.995,
                "queries_per_s": 2e3,
                "num_bytes": 2000,
                "build_s": 0.1,
            },
        ],
    }
}


@pytest.fixture(scope="module")
def evaluation(make_retriever, make_targets):
    config = EvaluationConfig(bootstrap_samples=100)
    counts = np.arange(30)
    retriever = make_retriever(0, 30)
    test, validation = (replay(retriever, make_targets(seed, 40, 30), counts, config) for seed in (0, 9))
    return summarise(test, validation, config)


@pytest.fixture
def report(evaluation):
    return Report(
        dataset="A & <B>",
        users=40,
        items=30,
        protocol="leave_one_out",
        refit=False,
        seed=7,
        metrics=evaluation.metrics,
        validation=evaluation.validation,
        buckets=evaluation.buckets,
        index=index_rows(INDEX),
        seconds={"prepare": 1.5, "train": 200.0},
    )


@pytest.fixture
def details(evaluation):
    return Details(
        num_queries=evaluation.num_queries,
        gains=evaluation.gains,
        data={"events": 1234, "rejected": {"missing item_id": 3}},
        training=TrainingCurve((3.0, 2.5), (0.1, 0.2)),
        index_notes={"towers": "the fastest"},
        fusion_method="reciprocal_rank",
        fusion_weights={"first": 1.0, "second": 0.5},
        config={"split": {"protocol": "leave_one_out"}},
    )


def no_constant(text):
    raise AssertionError(f"{text} is no JSON")


class Page(html.parser.HTMLParser):
    """Notes unbalanced tags and everything that would be fetched."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched = [], []

    def handle_starttag(self, tag, attributes):
        self.fetched += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_json_has_the_documented_shape(report, details, tmp_path):
    write_report(tmp_path, report, details)
    values = json.loads((tmp_path / REPORT_JSON).read_text(), parse_constant=no_constant)
    assert list(values) == [
        *("dataset", "users", "items", "protocol", "refit", "seed"),
        *("metrics", "validation", "buckets", "index", "seconds"),
    ]
    for part in (values["metrics"], values["validation"], values["buckets"]["head"]):
        assert part[FUSED].keys() == {*METRICS, "coverage@10", "ci95"}
        assert part["first"]["ci95"].keys() == METRICS.keys()
    assert values["buckets"]["head"]["n"] > 0
    assert list(values["buckets"])[:4] == ["head", "mid", "tail", "cold"]
    assert values["index"]["recall@100"] == 0.995
    assert values["index"]["queries_per_s"] == 2000.0
    assert len(values["index"]["table"]) == 2
    assert values["seconds"] == {"prepare": 1.5, "train": 200.0}


def test_read_report_gives_back_what_was_written(report, details, tmp_path):
    write_report(tmp_path, report, details)
    assert read_report(tmp_path / REPORT_JSON) == report


def test_read_report_says_what_is_wrong(tmp_path):
    with pytest.raises(ArtifactError, match="is missing"):
        read_report(tmp_path / "absent.json")
    (tmp_path / "bad.json").write_text('{"dataset": 1}')
    with pytest.raises(ArtifactError, match="evaluate again"):
        read_report(tmp_path / "bad.json")


def test_numbers_that_are_not_finite_become_null(report):
    assert finite({"a": [np.nan, 1.0], "b": (float("inf"), "x")}) == {"a": [None, 1.0], "b": [None, "x"]}
    values = replace(report, seconds={"train": float("nan")}).to_json()
    assert values["seconds"] == {"train": None}


def test_recall_over_another_k_is_not_called_recall_at_100(report):
    rows = index_rows({"towers": {**INDEX["towers"], "k": 10}})
    assert replace(report, index=rows).to_json()["index"]["recall@100"] is None
    assert replace(report, index=()).to_json()["index"] == {"recall@100": None, "queries_per_s": None, "table": []}


def test_page_is_one_whole_file(report, details, tmp_path):
    write_report(tmp_path, report, details)
    text = (tmp_path / REPORT_HTML).read_text()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert all(value.startswith("#") for value in page.fetched)  # marks inside the drawings, used by their id
    assert "<script" not in text
    assert "url(http" not in text
    assert "A &amp; &lt;B&gt;" in text
    assert "<B>" not in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert len(drawings) == 2 + sum(bucket.n > 0 for bucket in report.buckets.values()) + 4
    for drawing in drawings:
        ET.fromstring(re.sub(r"xlink:href", "href", drawing))
        assert "#010203" not in drawing
        assert 'role="img"' in drawing


def test_page_leaves_out_what_there_is_not(report, evaluation, tmp_path):
    bare = replace(report, index=(), seconds={}, validation={})
    write_report(tmp_path, bare, Details(evaluation.num_queries))
    text = (tmp_path / REPORT_HTML).read_text()
    for heading in (
        "Weights of the fusion",
        "Training of the towers",
        "Search index",
        "Where the time went",
        "The run",
    ):
        assert heading not in text


def test_drawings_repeat_exactly(report, details, tmp_path):
    pages = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_report(tmp_path / name, report, details)
        pages.append((tmp_path / name / REPORT_HTML).read_text())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("interval", "words"), [((0.01, 0.03), "beats"), ((-0.03, -0.01), "loses"), ((-0.01, 0.03), "too close to call")]
)
def test_verdict_says_what_the_interval_allows(interval, words):
    text = verdict(Gain("recall@10", "first", sum(interval) / 2, interval))
    assert words in text
    assert "first" in text


def test_table_fits_a_terminal_of_80_columns(report):
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    text = out.getvalue()
    assert f"{report.metrics[FUSED].values['recall@100']:.4f}" in text
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
