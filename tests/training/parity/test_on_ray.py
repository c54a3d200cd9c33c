"""`recsys-ray train --verify-parity` as people type it: workers agree, and do not when the gather is broken."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import recsys_ray
from recsys_ray import cli
from recsys_ray.data.synthetic import make_synthetic

pytestmark = pytest.mark.ray


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    data = make_synthetic(tmp_path / "raw", users=40, items=30, events_per_user=6, seed=1)
    settings = (
        *(f"data.items={data.items}", f"data.events={data.events}", "model.text=null", "ray.num_cpus=2"),
        # Two epochs' steps; dropout and clipping, which the check leaves out; slices of two ranks that are unequal.
        *("training.batch_size=16", "training.negatives=15", "model.user.dropout=0.3", "training.clip_norm=0.1"),
    )
    options = ["train", "--verify-parity", "--preset", "tiny", "--storage", str(tmp_path / "storage"), "--workers", "2"]
    return [*options, *(part for setting in settings for part in ("--set", setting))]


@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_are_found_to_train_as_one(command: list[str], tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.app, [*command, "--steps", "4", "--engines", "plain,zero2"])
    assert done.exit_code == 0, done.output
    assert "equal: several workers train as one does" in done.output
    written = json.loads((tmp_path / "storage" / "parity.json").read_text())
    assert [(curve["engine"], curve["workers"]) for curve in written["many"]] == [("plain", 2), ("zero2", 2)]
    assert len(written["one"]["norms"]) == 4
    assert min(written["one"]["norms"]) > 0.1  # longer than clip_norm
    assert not (tmp_path / "storage" / "parity").exists()


def test_a_gather_that_drops_its_gradient_is_found_out(command: list[str], tmp_path: Path) -> None:
    """The same command over a copy of the sources whose gather is broken, in every process."""
    copy = tmp_path / "broken"
    shutil.copytree(Path(recsys_ray.__file__).parent, copy / "recsys_ray", ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "recsys_ray" / "training" / "negatives.py"
    whole, broken = "_Gather.apply(local, count)", "_Gather.apply(local.detach(), count)"
    assert source.read_text().count(whole) == 1
    source.write_text(source.read_text().replace(whole, broken))
    done = subprocess.run(
        [sys.executable, "-m", "recsys_ray", *command, "--steps", "2", "--engines", "plain"],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT EQUAL: plain x2: the gradient norm differs from one worker's by up to" in done.stderr
    assert "from step 0 on" in done.stderr
    assert "Traceback" not in done.stderr
