"""The command line as a contract: commands, exit codes, and what goes to which stream."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from recsys_ray import cli
from recsys_ray.core.config import override
from recsys_ray.core.errors import RecsysError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.pipeline import run
from recsys_ray.presets import PRESETS

TABLES_ONLY = {"channels.nearest": None, "model.text": None, "channels.content.space": None}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    data = make_synthetic(folder / "raw", users=60, items=40, events_per_user=8, seed=1)
    changes = {**TABLES_ONLY, "data": data.model_dump(), "storage": str(folder / "storage")}
    run(override(PRESETS["tiny"](), changes))
    return folder / "storage"


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, list(arguments))


def failing(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "recsys_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def refusal(*arguments: str) -> str:
    """The error that `main` prints, without the seconds of another process."""
    raised = invoke(*arguments).exception
    assert isinstance(raised, RecsysError)
    return str(raised)


def test_help_lists_every_command():
    text = invoke("--help").output
    for command in (
        "run",
        "prepare",
        "train",
        "evaluate",
        "publish",
        "export",
        "compare",
        "recommend",
        "serve",
        "demo",
        "tune",
        "doctor",
    ):
        assert command in text


def test_presets_are_listed():
    assert {line.split()[0] for line in invoke("presets").output.splitlines()} == set(PRESETS)


def test_recommend_prints_items(storage):
    done = invoke("recommend", str(storage), "--history", "i1,i2", "--k", "5", "--json")
    assert done.exit_code == 0
    assert len(json.loads(done.stdout)) == 5


def test_compare_sets_two_reports_side_by_side(storage, tmp_path):
    done = invoke("compare", str(storage), str(storage / "report.json"), "--html", str(tmp_path / "page.html"))
    assert done.exit_code == 0
    assert "recall@100" in done.stdout
    assert "Both asked the same queries" in " ".join(done.stdout.split())
    assert "Two reports side by side" in (tmp_path / "page.html").read_text()


def test_compare_wants_reports(tmp_path):
    done = failing("compare", str(tmp_path), str(tmp_path))
    assert done.returncode == 2
    assert "report.json is missing: run `recsys-ray evaluate`" in done.stderr


def test_user_errors_have_no_traceback(tmp_path):
    done = failing("run", "--set", "split.protocol=random", "--storage", str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == ""
    assert "split.protocol: got 'random'; allowed: 'leave_one_out'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("run", "--until", "fit"), "No such option: --until"),
        (("compare",), "Missing argument"),
        (("serve", "--port", "70000"), "Invalid value for '--port'"),
        (("runn",), "No such command 'runn'"),
    ],
)
def test_a_mistyped_command_line_has_no_traceback(arguments, error):
    done = failing(*arguments)
    assert done.returncode == 2
    assert error in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_events_name_the_setting(tmp_path):
    assert "data.events" in refusal("prepare", "--storage", str(tmp_path))


def test_storage_may_be_set_like_any_other_setting(tmp_path):
    data = make_synthetic(tmp_path / "raw", users=20, items=15, events_per_user=6, seed=1)
    file = tmp_path / "run.yaml"
    file.write_text(f"storage: {tmp_path / 'by_file'}\ndata: {{events: {data.events}}}\n")
    assert invoke("prepare", "--config", str(file)).exit_code == 0
    assert invoke("prepare", "--config", str(file), "--set", f"storage={tmp_path / 'by_set'}").exit_code == 0
    assert (tmp_path / "by_file" / "artifacts").is_dir()
    assert (tmp_path / "by_set" / "artifacts").is_dir()


def test_recommend_wants_one_question(storage):
    done = failing("recommend", str(storage))
    assert done.returncode == 2
    assert "exactly one of --history, --user, --text, --all-users, --users" in done.stderr


def test_recommend_asks_for_many_users(storage, tmp_path):
    filters, seen = '{"op": "range", "field": "price", "max": 40}', '{"kinds": ["interaction"], "within_days": 9000}'
    options = ["--to", str(tmp_path / "to"), "-k", "3", "--filters", filters, "--exclude-seen", seen, "--no-ray"]
    done = invoke("recommend", str(storage), "--all-users", *options)
    assert done.exit_code == 0, done.exception
    assert "60 users in" in done.stdout
    table = pq.read_table(tmp_path / "to")
    assert set(table.column("rank").to_pylist()) == {1, 2, 3}
    one = invoke("recommend", str(storage), "--user", "u0", *options[2:-1], "--json")
    of_u0 = [row["item_id"] for row in table.to_pylist() if row["user_id"] == "u0"]
    assert [item["item_id"] for item in json.loads(one.stdout)] == of_u0
    assert of_u0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--all-users"], "--all-users --to FOLDER"),
        (["--history", "i1", "--to", "x"], "with --all-users or --users alone"),
        (["--user", "u0", "--exclude-seen", "maybe"], "--exclude-seen: got 'maybe'"),
        (["--user", "u0", "--exclude-seen", "{}"], "give within_days, kinds or both"),
        (["--history", "i1", "--exclude-seen", '{"kinds": ["buy"]}'], "true or false without a user_id"),
        (["--history", "i1", "--filters", '{"op": "is"}'], "--filters: got"),
    ],
)
def test_recommend_refuses_what_does_not_fit(storage, options, error):
    done = invoke("recommend", str(storage), *options)
    assert error in str(done.exception)


def test_recommend_without_a_release(tmp_path):
    done = failing("recommend", str(tmp_path), "--history", "1")
    assert done.returncode == 2
    assert "holds no release" in done.stderr


def test_parity_options_want_the_parity_check(tmp_path):
    assert "--verify-parity alone" in refusal("train", "--steps", "5", "--storage", str(tmp_path))


def test_parity_wants_known_engines_and_several_workers(tmp_path):
    for option, value, allowed in (("--engines", "zero7", "plain,zero0"), ("--workers", "1", "2 or more")):
        told = refusal("train", "--verify-parity", option, value, "--storage", str(tmp_path))
        assert option in told
        assert allowed in told


def test_export_of_a_model_without_texts_and_pictures(storage, tmp_path):
    done = failing("export", str(storage), "--to", str(tmp_path / "hub"))
    assert done.returncode == 2
    assert "has no backbone to export" in done.stderr
    assert not (tmp_path / "hub").exists()
