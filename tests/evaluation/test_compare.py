import io
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.evaluation.compare import (
    compare,
    comparison_sections,
    load_side,
    p_value,
    print_comparison,
    render_comparison,
)
from recsys_ray.evaluation.contents import Details, Report
from recsys_ray.evaluation.ranks import RANKS_FILE, Ranks
from recsys_ray.evaluation.replay import FUSED, replay
from recsys_ray.evaluation.report import REPORT_JSON, write_report
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import FoldQuestions, per_query, replay_folds, summarise

CONFIG = EvaluationConfig(bootstrap_samples=200)
USERS, ITEMS = IdMap(f"u{row}" for row in range(150)), IdMap(f"i{row}" for row in range(30))


@pytest.fixture(scope="module")
def write(tmp_path_factory, make_retriever, make_questions):
    """Write a report and its ranks into a folder of their own; returns the folder and the replays."""

    def make(retriever_seed, question_seed=0, channels=("first", "second"), users=USERS, refit=False):
        folder = tmp_path_factory.mktemp("report")
        retriever = make_retriever(retriever_seed, 30).only(list(channels))
        asked = make_questions(question_seed, 150, 30)
        rank = partial(replay, retriever, config=CONFIG)
        replays = replay_folds([rank], [FoldQuestions(asked, asked.slice(0, 9))])
        replays = replace(replays, refit=rank(asked)) if refit else replays
        report = Report("d<ata>", 150, 30, "leave_one_out", 0, summarise(replays, CONFIG))
        write_report(folder, report, Details())
        Ranks.of(replays.test, replays.refit, [asked.targets], users, ITEMS).save(folder / RANKS_FILE)
        return folder, replays

    return make


@pytest.fixture(scope="module")
def two(write):
    return write(0), write(1)


def test_differences_are_paired_and_judged_as_by_a_plain_loop(two):
    (one, before), (other, after) = two
    found = compare(load_side(one), load_side(other / REPORT_JSON), EvaluationConfig(bootstrap_samples=4000))
    assert found.why_not_paired == ""
    assert set(found.rankings) == {"first", "second", FUSED}
    difference = per_query(after.test, FUSED, "recall@10") - per_query(before.test, FUSED, "recall@10")
    judged = found.judged[FUSED, "recall@10"]
    assert judged.difference.value == pytest.approx(difference.mean())
    users = before.test.users
    rng = np.random.default_rng(5)
    owners = np.unique(users)
    means = []
    for _ in range(2000):
        drawn = rng.choice(owners, len(owners))
        values = np.concatenate([difference[users == user] for user in drawn])
        means.append(values.mean())
    assert judged.difference.ci95 == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.02)
    assert judged.p == pytest.approx(p_value(np.array(means)), abs=0.1)


def test_a_report_does_not_differ_from_itself(two):
    side = load_side(two[0][0])
    for judged in compare(side, side, CONFIG).judged.values():
        assert (judged.difference.value, judged.difference.ci95, judged.p) == (0.0, (0.0, 0.0), 1.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"question_seed": 7}, "not the same users"),
        ({"users": IdMap(f"v{row}" for row in range(150))}, "not the same users"),
    ],
)
def test_other_queries_are_not_paired(write, two, changes, reason):
    found = compare(load_side(two[0][0]), load_side(write(1, **changes)[0]), CONFIG)
    assert reason in found.why_not_paired
    assert found.judged == {}
    first = comparison_sections(found)[0]
    assert reason in first.text
    assert "…" in first.rows[0][2]  # each side's own interval


def test_each_reason_is_told_apart(two):
    one, other = (load_side(folder) for folder, _ in two)
    ranks = other.ranks
    changed = {
        "A ranked 30 items and B 31": replace(ranks, num_items=31),
        "different items for the same users": replace(
            ranks, items=ranks.items.take(list(range(len(ranks.items)))[::-1])
        ),
        "different histories": replace(ranks, asked_with="x"),
        "has no ranks.parquet": None,
    }
    for reason, other_ranks in changed.items():
        assert reason in compare(one, replace(other, ranks=other_ranks), CONFIG).why_not_paired


def test_ranks_may_be_missing(two, tmp_path):
    shutil.copyfile(two[0][0] / REPORT_JSON, tmp_path / REPORT_JSON)
    assert load_side(tmp_path).ranks is None
    with pytest.raises(ArtifactError, match=r"report\.json is missing"):
        load_side(tmp_path / "elsewhere" / REPORT_JSON)


def test_only_common_rankings_are_compared(write, two):
    alone = load_side(write(0, channels=("second",))[0])
    assert set(compare(load_side(two[0][0]), alone, CONFIG).rankings) == {"second", FUSED}
    nothing = replace(alone, report=replace(alone.report, numbers=replace(alone.report.numbers, metrics={})))
    with pytest.raises(ArtifactError, match="no channel in common"):
        compare(alone, nothing, CONFIG)


def test_tables_show_all_of_it(write, two):
    refits = [load_side(write(seed, refit=True)[0]) for seed in (0, 1)]
    found = compare(*refits, CONFIG)
    headings = [section.heading for section in comparison_sections(found)]
    assert headings == ["fused", "fused (refit)", "recall@10", "ndcg@10", "recall@100"]
    out = io.StringIO()
    print_comparison(found, Console(file=out, width=80))
    page = render_comparison(found)
    value = f"{refits[1].report.numbers.metrics[FUSED].values['ndcg@20']:.4f}"
    for text in (out.getvalue(), page):
        assert value in text
        assert "first (refit)" in text
    assert all(len(line) <= 80 for line in out.getvalue().splitlines() if "report0" not in line)
    assert "d&lt;ata&gt;" in page
    assert "cannot be compared" not in page
    apart = compare(refits[0], load_side(write(1, question_seed=7)[0]), CONFIG)
    assert "cannot be compared query by query" in render_comparison(apart)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=50))
def test_p_values_are_shares_and_do_not_know_the_order_of_sides(means):
    values = np.array(means)
    assert 0 < p_value(values) <= 1
    assert p_value(values) == p_value(-values)
    assert p_value(np.abs(values) + 1) == pytest.approx(min(1, 2 / (len(values) + 1)))
