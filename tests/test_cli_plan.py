"""`recsys-ray plan` as a contract: exit codes, JSON, sizes given or from the data."""

import json
import re

import pytest
from typer.testing import CliRunner

from recsys_ray import cli
from recsys_ray.core.errors import ConfigError
from recsys_ray.data.synthetic import make_synthetic

SIZES = ("--items", "2000", "--users", "1000", "--events", "20000")
TABLES = ("--preset", "tiny", "--set", "model.text=null")


def invoke(*arguments: str):
    return CliRunner().invoke(cli.app, ["plan", *arguments])


def test_what_fits_ends_with_0_and_shows_the_arithmetic():
    done = invoke(*TABLES, *SIZES, "--memory-gb", "8")
    assert done.exit_code == 0
    assert "too much" not in done.stdout
    assert "4 B x" in done.stdout


def test_what_does_not_fit_ends_with_1_and_names_a_setting_that_is_enough():
    done = invoke(
        *TABLES, "--items", "300000", "--users", "100000", "--events", "9000000", "--memory-gb", "1", "--json"
    )
    assert done.exit_code == 1
    needs = json.loads(done.stdout)["needs"]
    (table,) = (need for need in needs if need["stage"] == "channel: item_knn")
    assert table["num_bytes"] > 1e9
    assert any("channels.item_knn.neighbours" in one["changes"] and one["fits"] for one in table["remedies"])


def test_sizes_come_from_the_data(tmp_path):
    data = make_synthetic(tmp_path / "raw", users=30, items=20, events_per_user=6, seed=1)
    settings = ("--set", f"data.events={data.events}", "--set", f"storage={tmp_path / 'storage'}")
    done = invoke(*TABLES, *settings, "--json")
    assert json.loads(done.stdout)["sizes"]["items"] == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--items", "10"), "all of --items, --users and --events"),
        (("serving", "--items", "10", "--node-cores", "4"), "--node-memory-gb and --node-cores together"),
        (("serving", "--items", "10", "--recall", "1.5"), "recall: got 1.5"),
    ],
)
def test_half_a_question_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        CliRunner().invoke(cli.app, ["plan", *arguments], catch_exceptions=False)
