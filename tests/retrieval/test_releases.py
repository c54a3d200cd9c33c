import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import ReleaseParts, resolve_release, write_release
from recsys_ray.retrieval.release_pointer import POINTER, Pointer, locked, read_pointer, write_pointer
from recsys_ray.retrieval.releases import Releases

pytestmark = pytest.mark.slow


def damage(release: Path) -> None:
    (release / "fusion.json").write_text("{}")


def test_newest_first_and_what_cannot_be_read_last(folder: Path) -> None:
    (folder / "r2" / "manifest.json").write_text("{")
    found = Releases(folder).list()
    assert [one.id for one in found] == ["r3", "r1", "r2"]
    assert found[0].items == 300
    assert found[0].num_bytes == sum(
        f.stat().st_size for f in (folder / "r3").rglob("*.*") if f.name != "manifest.json"
    )
    assert found[2].problem is not None
    assert "manifest.json cannot be read" in found[2].problem


def test_without_a_pointer_the_newest_is_served_and_with_one_the_active(folder: Path) -> None:
    storage = folder.parent.parent
    assert Releases(folder).active() is None
    assert resolve_release(folder) == folder / "r3"
    (storage / "release").symlink_to(folder / "r2")
    assert resolve_release(storage) == folder / "r2"
    Releases(storage).activate("r1")
    assert Releases(storage).active() == folder / "r1"
    assert resolve_release(storage) == resolve_release(folder) == folder / "r1"
    assert resolve_release(folder / "r3") == folder / "r3"
    assert [one.id for one in Releases(storage).list() if one.active] == ["r1"]


def test_roll_back_goes_back_to_what_was_active_before(folder: Path) -> None:
    releases = Releases(folder)
    with pytest.raises(ArtifactError, match="no release was ever activated"):
        releases.roll_back()
    releases.activate("r1")
    releases.activate("r2")
    assert releases.roll_back() == "r1"
    with pytest.raises(ArtifactError, match="no release was active before r1"):
        releases.roll_back()
    assert releases.active() == folder / "r1"


def test_the_pointer_remembers_the_way() -> None:
    pointer = Pointer("r1", "now").to("r2").to("r3")
    assert (pointer.id, pointer.before) == ("r3", ("r1", "r2"))
    assert (pointer.back().id, pointer.back().back().id) == ("r2", "r1")
    assert pointer.without({"r2"}).back().id == "r1"


def test_what_does_not_pass_is_not_activated_and_not_rolled_back_to(folder: Path) -> None:
    releases = Releases(folder)
    damage(folder / "r2")
    with pytest.raises(ArtifactError, match=r"r2 is refused while hashing its files: .*'fusion.json'"):
        releases.activate("r2")
    assert releases.active() is None
    write_pointer(folder, Pointer("r3", "now", ("r1",)))
    damage(folder / "r1")
    with pytest.raises(ArtifactError, match="r1 is refused"):
        releases.roll_back()
    assert releases.active() == folder / "r3"


@pytest.mark.parametrize("name", ["nope", "../release/r1", "r1/../r1", "", ".", "/etc"])
def test_only_releases_of_the_folder_are_found(folder: Path, name: str) -> None:
    with pytest.raises(ArtifactError, match=r"has no release .*; it has: r1, r2, r3"):
        Releases(folder).activate(name)


def test_a_release_under_another_name_is_refused(folder: Path) -> None:
    (folder / "r1").rename(folder / "r9")
    with pytest.raises(ArtifactError, match="r9 holds release r1"):
        Releases(folder).activate("r9")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "r1"}', '{"id": "../x", "since": "", "before": []}'])
def test_a_pointer_that_is_none_is_an_error_and_no_other_release(folder: Path, text: str) -> None:
    (folder / POINTER).write_text(text)
    with pytest.raises(ArtifactError, match="activate a release again"):
        resolve_release(folder)


def test_a_pointer_to_nothing_is_an_error(folder: Path) -> None:
    write_pointer(folder, Pointer("gone", "now"))
    with pytest.raises(ArtifactError, match="names release gone, which is not there"):
        Releases(folder).active()


def test_writers_in_many_processes_lose_nothing_and_readers_see_whole_pointers(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from recsys_ray.retrieval.release_pointer import *\n"
        "folder, name = Path(sys.argv[1]), sys.argv[2]\n"
        "for turn in range(20):\n"
        "    with locked(folder):\n"
        "        write_pointer(folder, read_pointer(folder).to(f'{name}-{turn}'))\n"
    )
    write_pointer(tmp_path, Pointer("first", "now"))
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    while any(writer.poll() is None for writer in writers):
        assert read_pointer(tmp_path) is not None
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    pointer = read_pointer(tmp_path)
    assert pointer is not None
    assert {*pointer.before, pointer.id} == {"first", *(f"{name}-{turn}" for name in "abc" for turn in range(20))}


def test_a_killed_writer_leaves_the_pointer_and_the_lock_free(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from recsys_ray.retrieval.release_pointer import *\n"
        "with locked(Path(sys.argv[1])):\n"
        "    (Path(sys.argv[1]) / f'.{POINTER}.part').write_text('{')\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    write_pointer(tmp_path, Pointer("first", "now"))
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    with locked(tmp_path):
        write_pointer(tmp_path, Pointer("second", "now"))
    pointer = read_pointer(tmp_path)
    assert pointer is not None
    assert pointer.id == "second"


def test_prune_keeps_what_is_needed_and_counts_what_it_frees(folder: Path) -> None:
    releases = Releases(folder)
    (folder.parent.parent / "release").symlink_to(folder / "r2")
    os.link(folder / "r1" / "items.parquet", folder.parent / "items.parquet")
    size = sum(file.stat().st_size for file in (folder / "r1").rglob("*") if file.is_file())
    shared = (folder.parent / "items.parquet").stat().st_size
    write_pointer(folder, Pointer("r3", "now", ("r1", "r3", "r2")))
    pruned = releases.prune(1)
    assert pruned.ids == ["r1"]
    assert pruned.bytes_freed == size - shared
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [POINTER, "r2", "r3"]
    pointer = read_pointer(folder)
    assert pointer is not None
    assert pointer.before == ("r3", "r2")
    assert releases.prune(1).ids == []
    with pytest.raises(ConfigError, match="keep: got 0"):
        releases.prune(0)


def test_files_that_only_removed_releases_share_are_freed_once(folder: Path) -> None:
    for name in ("r1", "r2"):
        (folder / name / "items.parquet").unlink()
        os.link(folder / "r3" / "items.parquet", folder / name / "items.parquet")
    (folder / "r3" / "items.parquet").unlink()
    files = {file.stat().st_ino: file.stat().st_size for name in ("r1", "r2") for file in (folder / name).rglob("*.*")}
    assert Releases(folder).prune(1).bytes_freed == sum(files.values())


def test_diff_says_what_changed(make_parts: Callable[..., ReleaseParts], tmp_path: Path, folder: Path) -> None:
    store = ArtifactStore(folder.parent)
    other = make_parts(tmp_path / "other")
    channels = tuple(channel for channel in other.channels if channel.name != "popularity")
    changed = replace(other, channels=channels, fusion=Fusion(weights={"nearest": 2, "co_visitation": 1, "content": 1}))
    settings = replace(changed, settings={"index": {"factory": "exact"}})
    store.publish("release", "r4", lambda folder: write_release(folder, settings), {}, {})
    found = Releases(folder).diff("r1", "r4")
    assert found.channels == (
        ["nearest", "co_visitation", "content", "popularity"],
        ["nearest", "co_visitation", "content"],
    )
    assert found.weights == {"nearest": (1.0, 2.0), "popularity": (1.0, None)}
    assert found.settings == {"run.index.factory": ("HNSW16,Flat", "exact")}
    assert (found.items.new, found.items.gone, found.items.changed, found.users.new, found.users.gone) == (
        0,
        0,
        0,
        0,
        0,
    )


def test_diff_counts_items_and_users(folder: Path) -> None:
    for name, change in {"items.parquet": "item_id", "histories.parquet": "user_id"}.items():
        table = pq.read_table(folder / "r2" / name)
        place = table.column_names.index(change)
        ids = table.column(change).to_pylist()
        table = table.set_column(place, change, pa.array(["someone new", *ids[1:]]))
        if name == "items.parquet":
            titles = table.column("title").to_pylist()
            table = table.set_column(
                table.column_names.index("title"), "title", pa.array([*titles[:-2], None, "other"])
            )
        pq.write_table(table, folder / "r2" / name)
    found = Releases(folder).diff("r1", "r2")
    assert (found.items.new, found.items.gone, found.items.changed) == (1, 1, 2)
    assert (found.users.new, found.users.gone) == (1, 1)
