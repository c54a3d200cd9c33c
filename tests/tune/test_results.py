import pytest

from tune.results import render
from tune.spaces import parse_space
from tune.study import Row

SPACE = parse_space(
    {
        "model.dim": {"kind": "choice", "values": [32, 64]},
        "training.learning_rate": {"kind": "real", "low": 0.0001, "high": 0.1, "log": True},
    }
)


def row(trial: int, value: float | None, **changes) -> Row:
    metrics = {} if value is None else {"recall@10": value, "ndcg@10": value / 2, "recall@100": 2 * value}
    status = "stopped" if value is None else "finished"
    settings = {"model.dim": 32 * (1 + trial % 2), "training.learning_rate": 0.003 * trial}
    return Row(trial, status, settings, metrics, {1: 0.1, 2: 0.05 * trial}, 12.0, **changes)


@pytest.mark.parametrize("importances", [{}, {"model.dim": 0.8, "training.learning_rate": 0.2}])
def test_the_page_shows_every_trial_and_a_plot_a_setting(importances):
    page = render(SPACE, [row(3, 0.25), row(1, 0.21), row(2, None)], importances)
    assert "25.0%" in page
    assert "2 ran to their end, 1 stopped early" in page
    assert page.count("<svg") == 2 + len(SPACE) + bool(importances)
    assert all(f"<h3>{path}</h3>" in page for path in SPACE)
    assert page.count("<tr>") >= 3


def test_a_single_trial_without_epochs_has_its_page():
    page = render(SPACE, [Row(1, "finished", row(1, 0.2).settings, row(1, 0.2).metrics)], {})
    assert page.count("<svg") == 1 + len(SPACE)
