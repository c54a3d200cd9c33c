import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys_ray.core.artifacts import (
    MANIFEST,
    ArtifactStore,
    artifact_id,
    digest_files,
    link_or_copy,
    open_artifact,
    verify,
)
from recsys_ray.core.errors import ArtifactError


def _write(directory: Path) -> dict[str, int]:
    (directory / "deep").mkdir()
    (directory / "deep" / "a.bin").write_bytes(bytes(range(256)) * 10)
    (directory / "b.txt").write_text("text")
    return {"rows": 3}


@pytest.fixture
def store(tmp_path):
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def published(store):
    return store.publish("dataset", "id1", _write, {"k": 5}, {"raw": "r1"})


def test_published_is_found_whole(store, published):
    found = store.find("dataset", "id1")
    assert found == published
    assert found.summary == {"rows": 3}
    assert found.manifest.config == {"k": 5}
    assert found.manifest.parents == {"raw": "r1"}
    assert sorted(found.manifest.files) == ["b.txt", "deep/a.bin"]
    assert found.file("b.txt").read_text() == "text"
    verify(found)
    assert [path.name for path in (store.root / "dataset").iterdir()] == ["id1"]


def test_unlisted_file_is_named_with_what_is_listed(published):
    with pytest.raises(ArtifactError, match=r"no file 'c.txt'.*b.txt, deep/a.bin"):
        published.file("c.txt")


def test_a_failed_write_leaves_nothing(store):
    def fail(directory):
        (directory / "half").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.publish("dataset", "id1", fail, {}, {})
    assert store.find("dataset", "id1") is None
    assert list((store.root / "dataset").iterdir()) == []


def test_a_killed_writer_is_never_read_and_can_be_repeated(store):
    script = (
        "import os, signal, sys; from pathlib import Path; from recsys_ray.core.artifacts import ArtifactStore\n"
        "def write(d):\n"
        "    (d / 'half').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "ArtifactStore(Path(sys.argv[1])).publish('dataset', 'id1', write, {}, {})\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(store.root)], check=False, env=os.environ)
    assert done.returncode == -9
    assert store.find("dataset", "id1") is None
    assert store.publish("dataset", "id1", _write, {}, {}).summary == {"rows": 3}


def test_the_first_to_publish_an_id_stays(store, published):
    again = store.publish("dataset", "id1", lambda d: {"rows": 99}, {}, {})
    assert again.summary == {"rows": 3}


def test_a_broken_folder_in_the_way_is_replaced(store):
    path = store.path("dataset", "id1")
    path.mkdir(parents=True)
    (path / "half").write_text("half")
    verify(store.publish("dataset", "id1", _write, {}, {}))
    assert not (path / "half").exists()


def test_verify_sees_every_single_flipped_bit(published):
    target = published.path / "b.txt"
    good = target.read_bytes()
    for place in range(len(good) * 8):
        bad = bytearray(good)
        bad[place // 8] ^= 1 << place % 8
        target.write_bytes(bytes(bad))
        with pytest.raises(ArtifactError, match=r"'b.txt' does not hash"):
            verify(published)


def test_verify_sees_truncation_and_absence(published):
    target = published.path / "deep" / "a.bin"
    target.write_bytes(target.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"2559 bytes, the manifest says 2560"):
        verify(published)
    target.unlink()
    with pytest.raises(ArtifactError, match=r"'deep/a.bin' is missing"):
        verify(published)


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "deep/../../outside"])
def test_verify_refuses_files_outside(published, name):
    path = published.path / MANIFEST
    values = json.loads(path.read_text())
    values["files"][name] = {"sha256": "0" * 64, "num_bytes": 1}
    path.write_text(json.dumps(values))
    with pytest.raises(ArtifactError, match="outside the artifact"):
        verify(open_artifact(published.path, "dataset"))


def test_verify_refuses_a_link_that_leads_outside(published, tmp_path):
    (tmp_path / "secret").write_text("text")
    (published.path / "b.txt").unlink()
    (published.path / "b.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="outside the artifact"):
        verify(published)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v | {"format": 99}, "format 99.*publish it again"),
        (lambda v: v | {"kind": "index"}, "'index' artifact; a 'dataset' is needed"),
        (lambda v: {"kind": "dataset"}, "cannot be read"),
        (lambda v: v | {"extra": 1}, "cannot be read"),
        (lambda v: [v], "cannot be read"),
    ],
)
def test_a_wrong_manifest_is_explained(published, change, message):
    path = published.path / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ArtifactError, match=message):
        open_artifact(published.path, "dataset")


def test_no_manifest_is_no_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="not an artifact"):
        open_artifact(tmp_path, "dataset")


def test_ids_change_with_everything_that_changes_the_result():
    base = ("prepare", 1, {"a": 1}, {"raw": "x"}, "digest")
    others = [
        ("train", *base[1:]),
        ("prepare", 2, *base[2:]),
        (*base[:2], {"a": 2}, *base[3:]),
        (*base[:3], {"raw": "y"}, "digest"),
        (*base[:4], "other"),
    ]
    assert len({artifact_id(*arguments) for arguments in [base, *others]}) == 6
    assert artifact_id("s", 1, {"a": 1, "b": 2}, {}) == artifact_id("s", 1, {"b": 2, "a": 1}, {})


def test_digest_follows_content_and_names_not_places(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder / "deep").mkdir(parents=True)
        (tmp_path / folder / "deep" / "x").write_text("content")
    assert digest_files([tmp_path / "one"]) == digest_files([tmp_path / "two"])
    (tmp_path / "two" / "deep" / "x").write_text("changed")
    assert digest_files([tmp_path / "one"]) != digest_files([tmp_path / "two"])


def test_link_or_copy_of_a_folder(tmp_path):
    (tmp_path / "from" / "deep").mkdir(parents=True)
    (tmp_path / "from" / "deep" / "x").write_text("content")
    link_or_copy(tmp_path / "from", tmp_path / "to")
    assert (tmp_path / "to" / "deep" / "x").read_text() == "content"


def test_what_a_killed_run_left_is_swept_after_a_day(tmp_path):
    store = ArtifactStore(tmp_path)
    old, fresh = tmp_path / "kind" / ".a.1.tmp", tmp_path / "kind" / ".b.2.tmp"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    yesterday = time.time() - 2 * 86_400
    os.utime(old, (yesterday, yesterday))
    store.publish("kind", "c", lambda _: {}, {}, {})
    assert not old.exists()
    assert fresh.exists()
