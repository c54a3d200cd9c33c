"""What is said in one process is seen in another, in order and once."""

import subprocess
import sys

from recsys_ray.core.progress import following, say_into, track

_OTHER = """
import sys
from pathlib import Path
from recsys_ray.core.progress import say_into
for line in sys.argv[2:]:
    say_into(Path(sys.argv[1]), line)
"""


def test_lines_of_another_process_are_said_here(tmp_path, capfd):
    path = tmp_path / "lines"
    say_into(path, "an older run")
    with following(path):
        subprocess.run([sys.executable, "-c", _OTHER, str(path), "one [1/2]", "two"], check=True)
    assert capfd.readouterr().err.splitlines() == ["one [1/2]", "two"]


def test_nothing_said_is_nothing_shown(tmp_path, capfd):
    with following(tmp_path / "lines"):
        pass
    assert capfd.readouterr().err == ""


def test_track_passes_everything_through(capfd):
    assert list(track(range(3), "counting")) == [0, 1, 2]
    assert "counting" in capfd.readouterr().err
