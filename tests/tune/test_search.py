"""Real sweeps on real local clusters."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_ray.config import RunConfig, dump_config, load_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, RecsysError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.presets import PRESETS
from tune.results import BEST_FILE, PAGE_FILE, TRIALS_FILE
from tune.search import FOLDER, JOURNAL, search
from tune.spaces import parse_space

WITHOUT_TEXT = {"model.text": None, "channels.content.space": None}
ALL_FOUR_CPUS = {"training.workers": 2, "training.cpus": 2, "training.epochs": 1}  # of the session's cluster


@pytest.fixture
def config(tmp_path) -> RunConfig:
    data = make_synthetic(tmp_path / "raw", users=80, items=50, events_per_user=8, seed=2)
    changes = {**WITHOUT_TEXT, "data": data.model_dump(), "storage": str(tmp_path / "storage")}
    return override(PRESETS["tiny"](), changes)


def count(storage: Path, kind: str) -> int:
    return len(list((storage / "artifacts" / kind).glob("*/manifest.json")))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_trials_share_what_they_share_and_more_of_them_go_on(config, tmp_path):
    """Training takes every CPU there is: a trial that kept a share of one for itself would wait for ever."""
    config, storage = override(config, ALL_FOUR_CPUS), tmp_path / "storage"
    space = parse_space({"channels.co_visitation.window": {"kind": "choice", "values": [1, 2, 5, 10, 20, 40]}})
    best = search(config, space, trials=2, concurrent=2)
    rows = json.loads((storage / TRIALS_FILE).read_text())
    assert [row["status"] for row in rows] == ["finished"] * 2
    assert rows[0]["metrics"]["recall@10"] >= rows[1]["metrics"]["recall@10"]
    assert best.channels["co_visitation"].window == rows[0]["settings"]["channels.co_visitation.window"]
    assert load_config(storage / BEST_FILE, config) == best
    assert "<svg" in (storage / PAGE_FILE).read_text()
    # Side by side both would have made them: one waited for the other.
    shared = {kind: count(storage, kind) for kind in ("dataset", "towers", "vectors")}
    assert shared == {"dataset": 1, "towers": 1, "vectors": 1}
    windows = {row["settings"]["channels.co_visitation.window"] for row in rows}
    assert count(storage, "validation") == len(windows)
    assert search(config, space, trials=2) == best  # nothing is left to do
    assert json.loads((storage / TRIALS_FILE).read_text()) == rows
    # Nobody looked at test.
    assert count(storage, "report") == 0
    assert not (storage / "report.json").exists()


DRIVER = """
import sys
from pathlib import Path
from recsys_ray.config import load_config
from recsys_ray.presets import PRESETS
from tune.search import search
from tune.spaces import parse_space

space = parse_space({"training.learning_rate": {"kind": "real", "low": 0.001, "high": 0.01, "log": True}})
search(load_config(Path(sys.argv[1]), PRESETS["tiny"]()), space, trials=2, grace=12)  # nothing is stopped early
"""


@pytest.mark.ray
def test_a_killed_driver_goes_on(config, tmp_path, wait_until):
    """SIGKILL in the middle of the second trial's training; the same command ends the search."""
    storage, file = tmp_path / "storage", tmp_path / "run.yaml"
    changes = {"training.epochs": 12, "training.patience": None, "ray.num_cpus": 2}
    file.write_text(dump_config(override(config, changes)))
    command = [sys.executable, "-c", DRIVER, str(file)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    wait_until(lambda: epochs_of(storage, trial=1) >= 2 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert epochs_of(storage, trial=1) < 12
    assert not (storage / TRIALS_FILE).exists()

    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ)
    assert "1 of 2 trials to go" in done.stderr
    assert "trial 1 begins" not in done.stderr
    assert "trial 2 begins" in done.stderr
    rows = json.loads((storage / TRIALS_FILE).read_text())
    assert sorted((row["trial"], row["status"]) for row in rows) == [(1, "finished"), (2, "finished")]
    for row in rows:
        assert [epoch["epoch"] for epoch in row["epochs"]] == list(range(1, 13))
    assert {kind: count(storage, kind) for kind in ("dataset", "towers")} == {"dataset": 1, "towers": 2}


def epochs_of(storage: Path, trial: int) -> int:
    """Epochs of a trial, counted from 0, that the journal knows."""
    journals = list(storage.glob(f"{FOLDER}/*/{JOURNAL}"))
    lines = journals[0].read_text().splitlines() if journals else []
    return sum(f'"trial_id":{trial},"step"' in line for line in lines)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_where_no_trial_ends_the_reasons_are_told(config, tmp_path):
    space = parse_space({"model.user.history": {"kind": "choice", "values": [4]}})
    with pytest.raises(RecsysError, match=r"none of 1 trials ran to its end: .*training.max_history"):
        search(override(config, {"training.max_history": 9}), space, trials=1)


def test_a_wrong_path_fails_before_any_trial(config):
    space = parse_space({"channels.co_visitation.windw": {"kind": "choice", "values": [1]}})
    with pytest.raises(ConfigError, match="windw"):
        search(config, space, trials=1)
