"""The journal is all there is: a new process finds in it what an earlier one knew."""

from ray.tune.schedulers import ASHAScheduler

from tune.search import _recall
from tune.spaces import parse_space
from tune.study import METRICS, begun, cut_trials, distributions, importances, open_study, rows, tell

SPACE = parse_space({"x": {"kind": "real", "low": 0, "high": 1}, "kind": {"kind": "choice", "values": ["a", None]}})


def finish(study, value: float, epochs: int = 0) -> dict[str, object]:
    trial = study.ask(distributions(SPACE))
    for epoch in range(1, epochs + 1):
        trial.report(value * epoch / 10, step=epoch)
    tell(study, trial, dict.fromkeys(METRICS, value), 1.5, "")
    return trial.params


def test_a_new_process_goes_on_with_what_was_cut_and_repeats_nothing(tmp_path):
    study = open_study(tmp_path / "journal", seed=4)
    done = finish(study, 0.25, epochs=3)
    cut = study.ask(distributions(SPACE))
    cut.report(0.1, step=1)

    again = open_study(tmp_path / "journal", seed=4)  # as a new process would, after the old one died
    assert begun(again, SPACE) == 1
    (left,) = cut_trials(again, SPACE)
    assert (left.number, left.params) == (1, cut.params)
    left.report(0.2, step=2)
    tell(again, left, dict.fromkeys(METRICS, 0.5), 2.0, "")
    fresh = again.ask(distributions(SPACE)).params
    assert fresh not in (done, cut.params)
    first, second, third = rows(again)
    assert (first.trial, first.status, first.epochs) == (2, "finished", {1: 0.1, 2: 0.2})
    assert (second.trial, second.metrics["recall@100"], second.seconds) == (1, 0.25, 1.5)
    assert third.status == "running"


def test_rows_are_sorted_by_how_far_they_came(tmp_path):
    study = open_study(tmp_path / "journal", seed=0)
    for value in (0.1, 0.3):
        finish(study, value)
    for epochs in (1, 4):
        trial = study.ask(distributions(SPACE))
        for epoch in range(1, epochs + 1):
            trial.report(0.01, step=epoch)
        tell(study, trial, None, 1.0, "")
    tell(study, study.ask(distributions(SPACE)), None, 1.0, "the loss is not finite")
    found = [(row.trial, row.status) for row in rows(study)]
    assert found == [(2, "finished"), (1, "finished"), (4, "stopped"), (3, "stopped"), (5, "failed")]
    assert rows(study)[-1].failure == "the loss is not finite"


def test_a_new_scheduler_compares_with_trials_of_an_earlier_process(tmp_path):
    study = open_study(tmp_path / "journal", seed=0)
    for value in (0.5, 0.6, 0.7):
        finish(study, value, epochs=4)
    asha = ASHAScheduler(
        time_attr="epoch",
        metric="towers_ndcg@10",
        mode="max",
        max_t=9,
        grace_period=1,
        reduction_factor=3,
        stop_last_trials=False,
    )
    _recall(asha, study)
    recorded = [sorted(round(value, 6) for value in values.values()) for _, values in asha._brackets[0]._rungs]
    assert recorded == [[], [0.15, 0.18, 0.21], [0.05, 0.06, 0.07]]  # after 9, 3 and 1 epochs


def test_importance_needs_enough_trials_and_finds_what_decides(tmp_path):
    study = open_study(tmp_path / "journal", seed=0)
    for _ in range(19):
        trial = study.ask(distributions(SPACE))
        tell(study, trial, dict.fromkeys(METRICS, trial.params["x"]), 1.0, "")
    assert importances(study) == {}
    trial = study.ask(distributions(SPACE))
    tell(study, trial, dict.fromkeys(METRICS, trial.params["x"]), 1.0, "")
    shares = importances(study)
    assert shares["x"] > 0.9
