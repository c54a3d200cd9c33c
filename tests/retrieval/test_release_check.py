"""The corruption matrix: each broken release is refused, with the file or part and the reason."""

import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.errors import ArtifactError, RecsysError
from recsys_ray.retrieval.release import load_release
from recsys_ray.retrieval.release_check import check_release, inspect

pytestmark = pytest.mark.slow

INDEX = "channels/nearest/index/index.faiss"
VECTORS = "channels/nearest/index/vectors.npy"


def test_a_whole_release_passes(published: Path) -> None:
    checked = check_release(published)
    assert (checked.id, checked.path, checked.items) == ("r1", published, 300)
    assert checked.files == len([file for file in published.rglob("*") if file.is_file()]) - 1


def edit(path: Path, change: Callable[[Any], None]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def flip(release: Path) -> None:
    content = bytearray((release / INDEX).read_bytes())
    content[len(content) // 2] ^= 1
    (release / INDEX).write_bytes(bytes(content))


def truncate(release: Path) -> None:
    content = (release / INDEX).read_bytes()
    (release / INDEX).write_bytes(content[: len(content) * 2 // 3])


def empty_file(release: Path) -> None:
    (release / "items.parquet").write_bytes(b"")


def missing(release: Path) -> None:
    (release / "fusion.json").unlink()


def added(release: Path) -> None:
    (release / "channels/content/extra.json").write_text("{}")


def escape(release: Path) -> None:
    (release.parent / "outside").write_text("x")
    entry = {"sha256": "0" * 64, "num_bytes": 1}
    edit(release / "manifest.json", lambda manifest: manifest["files"].update({"../outside": entry}))


def absolute(release: Path) -> None:
    entry = {"sha256": "0" * 64, "num_bytes": 1}
    edit(release / "manifest.json", lambda manifest: manifest["files"].update({"/etc/hostname": entry}))


def link_out(release: Path) -> None:
    outside = release.parent / "items.parquet"
    (release / "items.parquet").rename(outside)
    (release / "items.parquet").symlink_to(outside)


def link_in(release: Path) -> None:
    (release / "other.json").symlink_to("fusion.json")


def older_format(release: Path) -> None:
    edit(release / "manifest.json", lambda manifest: manifest.update(format=0))


def other_kind(release: Path) -> None:
    edit(release / "manifest.json", lambda manifest: manifest.update(kind="towers"))


def half_manifest(release: Path) -> None:
    text = (release / "manifest.json").read_text()
    (release / "manifest.json").write_text(text[: len(text) // 2])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (flip, "index.faiss' does not hash"),
        (truncate, "index.faiss' has .* bytes, the manifest says"),
        (empty_file, "'items.parquet' has 0 bytes"),
        (missing, "'fusion.json' is missing"),
        (added, "'channels/content/extra.json' is not in its manifest"),
        (escape, "'../outside' lies outside"),
        (absolute, "'/etc/hostname' lies outside"),
        (link_out, "'items.parquet' lies outside"),
        (link_in, "'other.json' is a link"),
        (older_format, "format 0; this version reads format 1"),
        (other_kind, "'towers' artifact; a 'release' is needed"),
        (half_manifest, "manifest.json cannot be read"),
    ],
)
def test_what_hashes_and_manifest_tell(broken: Path, damage: Callable[[Path], None], reason: str) -> None:
    damage(broken)
    with pytest.raises(ArtifactError, match=reason):
        inspect(broken, lambda kind, value: None)


def swapped_ids(release: Path) -> None:
    items = pq.read_table(release / "items.parquet")
    ids = items.column("item_id").to_pylist()
    ids[3], ids[7] = ids[7], ids[3]
    pq.write_table(items.set_column(0, "item_id", pa.array(ids)), release / "items.parquet")


def no_items(release: Path) -> None:
    for name in ("items.parquet", "histories.parquet"):
        pq.write_table(pq.read_table(release / name).slice(0, 0), release / name)


def exchanged_channels(release: Path) -> None:
    """The content channel answers under co-visitation's name, and the other way round."""
    first, second = release / "channels/content", release / "channels/co_visitation"
    first.rename(release / "aside")
    second.rename(first)
    (release / "aside").rename(second)


def without_canary(release: Path) -> None:
    (release / "canary.json").unlink()


def channel_outside(release: Path) -> None:
    edit(release / "release.json", lambda settings: settings["channels"].append("../../elsewhere"))


def other_dimension(release: Path) -> None:
    """Index and vectors agree with each other, and not with the space of the queries."""
    vectors = np.load(release / VECTORS)[:, :8].copy()
    np.save(release / VECTORS, vectors)
    index = faiss.IndexFlatIP(8)
    index.add(vectors)
    faiss.write_index(index, str(release / INDEX))


def extra_dimensions(release: Path) -> None:
    vectors = np.load(release / VECTORS)
    np.save(release / VECTORS, np.hstack([vectors, vectors]))


def fewer_rows(release: Path) -> None:
    np.save(release / VECTORS, np.load(release / VECTORS)[:-1])


def shuffled_vectors(release: Path) -> None:
    """Vectors and index still agree, item by item of others."""
    vectors = np.load(release / VECTORS)[::-1].copy()
    np.save(release / VECTORS, vectors)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(release / INDEX))


def other_index(release: Path) -> None:
    """An index of the right shape over other vectors: what it finds is scored rightly, but the best are missed."""
    index = faiss.IndexFlatIP(16)
    index.add(np.random.default_rng(9).standard_normal((300, 16)).astype(np.float32))
    faiss.write_index(index, str(release / INDEX))


def not_an_index(release: Path) -> None:
    (release / INDEX).write_bytes(b"nothing of FAISS")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (swapped_ids, "its items are others than when it was published, or in another order"),
        (no_items, "its catalogue has no item"),
        (exchanged_channels, "the lists of channel 'co_visitation' hold 0.0% of the candidates that were recorded"),
        (without_canary, "published by an older version, without canary.json: publish it again"),
        (channel_outside, "elsewhere"),
        (other_dimension, "space backbone has 16 dimensions, the item vectors have 8"),
        (extra_dimensions, r"the index holds 300 x 16, the vectors \(300, 32\)"),
        (fewer_rows, r"the index holds 300 x 16, the vectors \(299, 16\)"),
        (shuffled_vectors, r"the fused lists hold \d+.\d% of the candidates"),
        (other_index, r"channel 'nearest': its index finds 0\.\d+ of what exact search finds"),
        (empty_file, "Parquet"),
        (not_an_index, "the index in .* cannot be read"),
    ],
)
def test_what_loading_and_the_canary_tell_where_hashes_fit(
    broken: Path, rehash: Callable[[Path], None], damage: Callable[[Path], None], reason: str
) -> None:
    damage(broken)
    rehash(broken)
    # An empty Parquet file is refused by the library that reads it; the child reports whatever comes.
    with pytest.raises((RecsysError, pa.ArrowInvalid), match=reason):
        inspect(broken, lambda kind, value: None)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "while loading channels/nearest: the index in .* cannot be read"),
        (other_dimension, "while loading towers, catalogue and histories: space backbone has 16 dimensions"),
    ],
)
def test_the_child_says_what_it_was_at(
    broken: Path, rehash: Callable[[Path], None], damage: Callable[[Path], None], reason: str
) -> None:
    damage(broken)
    rehash(broken)
    with pytest.raises(ArtifactError, match=f"release {broken} is refused {reason}"):
        check_release(broken)


@pytest.mark.parametrize("ending", [signal.SIGSEGV, signal.SIGKILL])
def test_the_child_dies_in_place_of_the_server(
    published: Path, wait_until: Callable[[Callable[[], object]], None], ending: signal.Signals
) -> None:
    """As a broken index file, or the kernel where memory is short, would end it."""
    with ThreadPoolExecutor(1) as pool:
        before = children()
        checked = pool.submit(check_release, published)
        wait_until(lambda: children() - before)
        os.kill(min(children() - before), ending)
        with pytest.raises(ArtifactError, match=f"the process that loaded it was ended by {ending.name}"):
            checked.result()


def children() -> set[int]:
    """The processes that this one has started."""
    return {int(pid) for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()}


def test_a_check_that_takes_too_long_is_a_refusal(published: Path) -> None:
    with pytest.raises(ArtifactError, match=r"did not end within 0\.01 s"):
        check_release(published, timeout_s=0.01)


def test_releases_without_a_canary_still_load(broken: Path, rehash: Callable[[Path], None]) -> None:
    without_canary(broken)
    rehash(broken)
    assert load_release(broken).recommend(history=["i1", "i2"], k=5)
