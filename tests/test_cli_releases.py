import json
from pathlib import Path
from typing import Any

import pytest
from rich.filesize import decimal
from typer.testing import CliRunner

from recsys_ray.cli import app
from recsys_ray.core.artifacts import Artifact, ArtifactStore
from recsys_ray.core.errors import ArtifactError
from recsys_ray.pipeline import _next
from recsys_ray.retrieval.release_pointer import Pointer, write_pointer


def publish(storage: Path, name: str) -> Artifact:
    """An artifact of one file, which is enough for all that does not load it."""

    def write(folder: Path) -> dict[str, Any]:
        (folder / "items.txt").write_text(name * 500)
        return {"items": 7, "fitted_on": "all events", "measured": {"recall@10": 0.125}}

    return ArtifactStore(storage / "artifacts").publish("release", name, write, {}, {})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    for name in ("a1", "b2"):
        last = publish(tmp_path, name)
    (tmp_path / "release").symlink_to(last.path)
    return tmp_path


def run(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(app, ["releases", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0
    return json.loads(result.stdout) if "--json" in arguments else result.stdout


def test_list(storage: Path) -> None:
    write_pointer(storage / "artifacts" / "release", Pointer("a1", "now"))
    assert [(one["id"], one["active"]) for one in run("list", storage, "--json")] == [("b2", False), ("a1", True)]
    line = next(line for line in run("list", storage).splitlines() if "a1" in line)
    assert [cell.strip() for cell in line.split("│")][1:] == (
        ["active", "a1", line.split("│")[3].strip(), "7", "all events", "0.1250", "", "", "1.0 kB", ""]
    )


def test_what_does_not_pass_is_refused(storage: Path) -> None:
    for command in (["verify", storage / "release"], ["activate", storage, "a1"]):
        with pytest.raises(ArtifactError, match=r"is refused while .*release\.json"):
            run(*command)
    with pytest.raises(ArtifactError, match="nothing to roll back to"):
        run("rollback", storage)


def test_prune(storage: Path) -> None:
    publish(storage, "c3")
    size = sum(file.stat().st_size for file in (storage / "artifacts" / "release" / "a1").iterdir())
    assert run("prune", storage, "--keep", "1") == f"removed: a1; {decimal(size)} freed\n"
    assert {one["id"] for one in run("list", storage, "--json")} == {"b2", "c3"}


def test_push_and_pull(storage: Path, tmp_path: Path) -> None:
    there = (tmp_path / "there").as_uri()
    assert run("push", storage, there) == f"{there}/b2\n"
    assert run("pull", there, "--to", tmp_path / "here", "--json") == {"path": str(tmp_path / "here" / "b2")}
    assert (tmp_path / "here" / "b2" / "items.txt").read_text() == "b2" * 500


def test_publishing_beside_an_active_release_says_what_to_type(storage: Path) -> None:
    new = publish(storage, "c3")
    assert _next(storage, new) == f"serve it: recsys-ray serve {storage}"
    write_pointer(new.path.parent, Pointer("a1", "now"))
    command = f"recsys-ray releases activate {storage} c3"
    assert _next(storage, new) == f"a1 stays active until you type: {command}"
