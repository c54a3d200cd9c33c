import html.parser
import io
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.metrics import METRICS
from recsys_ray.evaluation.contents import Details, Report, Section, TrainingCurve, finite, index_rows
from recsys_ray.evaluation.page import verdict
from recsys_ray.evaluation.replay import FUSED, replay
from recsys_ray.evaluation.report import REPORT_HTML, REPORT_JSON, print_report, read_report, write_report
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import (
    CHANGES,
    LIST_METRICS,
    Difference,
    FoldQuestions,
    Gain,
    Replays,
    replay_folds,
    summarise,
)
from recsys_ray.retrieval.fusion import Fusion

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


TUNING = {
    "trials": 7,
    "seconds": 2.5,
    "start": {"objective": 0.1, "settings": {"decay": 0.6, "neighbours": None}},
    "best": {"objective": 0.125, "settings": {"decay": 0.8, "neighbours": None}},
}


@pytest.fixture(scope="module")
def replays(make_retriever, make_questions):
    config = EvaluationConfig(bootstrap_samples=100)
    retriever, counts = make_retriever(0, 30), np.arange(30)
    test, validation = (make_questions(seed, 40, 30, counts) for seed in (0, 9))
    test = replace(test, user_tokens=np.ones((40, 1), np.int64))
    without = {"first": Fusion(weights={"second": 1.0}), "second": Fusion(weights={"first": 1.0})}
    folds = [FoldQuestions(test, validation, replace(test.sample(20, 0), without=without))]
    done = replay_folds([partial(replay, retriever, config=config)], folds)
    return replace(done, refit=replay(make_retriever(1, 30), test, config))


@pytest.fixture(scope="module")
def bare_evaluation(replays):
    return summarise(Replays(replays.test, replays.validation), EvaluationConfig(bootstrap_samples=100))


@pytest.fixture
def report(replays):
    return Report(
        dataset="A & <B>",
        users=40,
        items=30,
        protocol="leave_one_out",
        seed=7,
        numbers=summarise(replays, EvaluationConfig(bootstrap_samples=100)),
        warnings=("it leaks the <future>",),
        channels={"first": {"kind": "a", "decay": 0.8, "tuning": TUNING}, "second": {"kind": "b", "tuning": None}},
        left_out={"third": "nobody has a picture"},
        index=index_rows(INDEX),
        sections=(Section("Worth of each modality", "Points.", ("modality", "n", "text"), (("text", 3, None),)),),
        seconds={"prepare": 1.5, "train": 200.0},
    )


@pytest.fixture
def details():
    return Details(
        data={"events": 1234, "rejected": {"missing item_id": 3}, "warnings": ["shown above"]},
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
        *("dataset", "users", "items", "protocol", "seed", "warnings", "queries"),
        *("metrics", "refit", "refit_gain", "validation", "gains", "contributions", "buckets"),
        *("among_cold", "short_histories", "channels", "left_out", "index", "sections", "seconds"),
    ]
    for part in (values["metrics"], values["validation"], values["refit"], values["buckets"]["head"]):
        assert part[FUSED].keys() == {*METRICS, *LIST_METRICS, "ci95"}
        assert part["first"]["ci95"].keys() == METRICS.keys()
    assert values["refit"] != values["metrics"]
    assert values["contributions"].keys() == {"first", "second"}
    assert values["contributions"]["first"].keys() == set(CHANGES) == values["refit_gain"].keys()
    assert values["contributions"]["first"]["recall@10"].keys() == {"value", "ci95"}
    assert list(values["short_histories"]) == ["0", "attributes", "1", "2", "all"]
    assert values["short_histories"]["1"][FUSED].keys() == values["metrics"][FUSED].keys()
    assert values["warnings"] == ["it leaks the <future>"]
    assert values["left_out"] == {"third": "nobody has a picture"}
    assert values["channels"]["first"]["decay"] == 0.8
    assert values["buckets"]["head"]["n"] > 0
    assert values["among_cold"]["n"] == values["buckets"]["cold"]["n"] > 0
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
    former = {"dataset": "x", "users": 1, "items": 1, "protocol": "given", "refit": False, "seed": 0, "metrics": {}}
    for content in ({"dataset": 1}, former):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match=r"not a report of this version: .*; evaluate again"):
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
    assert len(drawings) == 2 + 2 + sum(bucket.n > 0 for bucket in report.numbers.buckets.values()) + 4
    for drawing in drawings:
        ET.fromstring(re.sub(r"xlink:href", "href", drawing))
        assert "#010203" not in drawing
        assert 'role="img"' in drawing


def test_page_shows_what_there_is(report, details, tmp_path):
    write_report(tmp_path, report, details)
    text = (tmp_path / REPORT_HTML).read_text()
    for shown in (
        *(
            "it leaks the &lt;future&gt;",
            "The channel third is left out: nobody has a picture",
            "What each source adds",
        ),
        *("Users of whom little is known", "Strict and refit", "Test, refit", "Worth of each modality"),
        *("decay 0.8 (0.6), neighbours none", "0.1250", "7 in 2 s", "as configured", "gini@10"),
    ):
        assert shown in text, shown
    assert "shown above" not in text


def test_page_leaves_out_what_there_is_not(report, bare_evaluation, tmp_path):
    bare = Report(report.dataset, report.users, report.items, report.protocol, report.seed, bare_evaluation)
    write_report(tmp_path, bare, Details())
    text = (tmp_path / REPORT_HTML).read_text()
    for heading in (
        *("Weights of the fusion", "Training of the towers", "Search index", "Where the time went", "The run"),
        *("What each source adds", "Users of whom", "refit", "How the channels were tuned", "left out", 'warning"'),
    ):
        assert heading not in text, heading


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
    text = verdict(Gain("recall@10", "first", Difference(sum(interval) / 2, interval)))
    assert words in text
    assert "first" in text


def test_table_fits_a_terminal_of_80_columns(report):
    out = io.StringIO()
    print_report(report, Console(file=out, width=80))
    text = out.getvalue()
    for ranked in (report.numbers.metrics, report.numbers.refit):
        assert f"{ranked[FUSED].values['recall@100']:.4f}" in text
    for shown in ("it leaks the <future>", "channel third is left out: nobody has a picture", "What each channel adds"):
        assert shown in text
    assert "Worth of each modality" in text
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_short_stages_share_a_bar(report, tmp_path):
    seconds = {"prepare": 0.5, "train": 200.0, "embed": 0.25, "fuse": 9.0}
    write_report(tmp_path, replace(report, seconds=seconds), Details())
    text = (tmp_path / REPORT_HTML).read_text()
    assert "2 shorter ones" in text
    assert "0.8 s" in text
    assert "9.0 s" in text
