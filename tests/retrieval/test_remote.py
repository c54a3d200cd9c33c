"""Releases in other storage: `file://`, and S3 by a server of the test's own."""

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.retrieval.release import load_release, resolve_release
from recsys_ray.retrieval.remote import fetch, is_uri, pull, push

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def s3(
    tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[[Callable[[], object]], None]
) -> Iterator[Callable[[str], str]]:
    """Names to URIs in a bucket of a real S3 server (moto's); credentials and endpoint are part of the URI."""
    binary = shutil.which("moto_server")
    if binary is None or subprocess.run([binary, "--help"], capture_output=True, check=False).returncode:
        pytest.skip(
            "moto_server is not installed; in an environment of its own: pip install 'moto[s3]' flask flask-cors"
        )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path_factory.mktemp("s3") / "log").open("w")
    process = subprocess.Popen([binary, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, "moto_server ended"
        try:
            return httpx.put(f"http://127.0.0.1:{port}/bucket").is_success
        except httpx.TransportError:
            return False

    def uri(name: str) -> str:
        return f"s3://key:secret@{name}?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"

    try:
        wait_until(answers)
        yield uri
    finally:
        process.kill()
        process.wait()
        log.close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def same(a: Path, b: Path) -> bool:
    files = [
        {file.relative_to(root): file.read_bytes() for file in root.rglob("*") if file.is_file()} for root in (a, b)
    ]
    return files[0] == files[1]


def test_what_was_pushed_to_s3_is_pulled_and_answers(
    published: Path, folder: Path, s3: Callable[[str], str], tmp_path: Path
) -> None:
    uri = s3("bucket/shop/releases")
    assert push(published, uri) == "s3://bucket/shop/releases/r1"
    push(folder / "r2", uri)
    assert same(pull(s3("bucket/shop/releases/r1"), tmp_path / "pulled"), published)
    assert pull(s3("bucket/shop/releases"), tmp_path / "pulled").name == "r1"  # of today, r2 is of the past
    release = load_release(uri)
    assert release.recommend(history=["i1", "i2"], k=5) == load_release(published).recommend(history=["i1", "i2"], k=5)
    assert release.artifact.path.is_relative_to(tmp_path / "cache")
    assert resolve_release(uri) == release.artifact.path


def test_s3_says_what_is_not_there(s3: Callable[[str], str], published: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"^s3://bucket/nothing holds no release"):
        pull(s3("bucket/nothing"), tmp_path)
    with pytest.raises(ArtifactError, match=r"^s3://nobucket/a holds no release: there is no such bucket"):
        pull(s3("nobucket/a"), tmp_path)
    with pytest.raises(ArtifactError, match=r"^s3://nobucket/a/r1/\S+: there is no such bucket"):
        push(published, s3("nobucket/a"))


def test_a_push_again_sends_only_what_is_missing(published: Path, tmp_path: Path) -> None:
    there = tmp_path / "there" / "r1"
    push(published, (tmp_path / "there").as_uri())
    (there / "manifest.json").unlink()
    (there / "fusion.json").write_text("half")
    kept = (there / "items.parquet").stat()
    push(published, (tmp_path / "there").as_uri())
    assert same(there, published)
    assert (there / "items.parquet").stat() == kept


def test_another_release_of_the_same_id_is_not_written_over(published: Path, folder: Path, tmp_path: Path) -> None:
    push(published, (tmp_path / "there").as_uri())
    with pytest.raises(ArtifactError, match="holds another release of that id"):
        push(folder / "r1", (tmp_path / "there").as_uri())
    pull((tmp_path / "there").as_uri(), tmp_path / "here")
    push(folder / "r1", (tmp_path / "other").as_uri())
    with pytest.raises(ArtifactError, match="is another release than"):
        pull((tmp_path / "other").as_uri(), tmp_path / "here")


def test_a_changed_file_is_found_while_it_is_copied_and_the_rest_is_kept(broken: Path, tmp_path: Path) -> None:
    original = (broken / "fusion.json").read_bytes()
    (broken / "fusion.json").write_bytes(original[:-1] + b" ")
    with pytest.raises(ArtifactError, match=r"file 'fusion\.json' does not hash"):
        fetch(broken.as_uri())
    kept = {path: path.stat() for path in tmp_path.glob("cache/**/index.faiss")}
    assert kept
    (broken / "fusion.json").write_bytes(original)
    assert same(fetch(broken.as_uri()), broken)
    assert [path.stat().st_ino for path in tmp_path.glob("cache/**/index.faiss")] == [s.st_ino for s in kept.values()]


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../b", ".hidden", "manifest.json"])
def test_names_that_lead_out_are_refused_before_anything_is_written(broken: Path, tmp_path: Path, name: str) -> None:
    manifest = json.loads((broken / "manifest.json").read_text())
    manifest["files"][name] = {"sha256": "0" * 64, "num_bytes": 1}
    (broken / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="lies outside"):
        fetch(broken.as_uri())
    assert not list(tmp_path.glob("cache/**/*.parquet"))


def test_several_processes_at_once_share_one_copy(published: Path, tmp_path: Path) -> None:
    code = "import sys; from recsys_ray.retrieval.remote import fetch; print(fetch(sys.argv[1]))"
    command = [sys.executable, "-c", code, published.as_uri()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    outcomes = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert len({out for out, _ in outcomes}) == 1
    assert sum(err.count("fetching") for _, err in outcomes) == 1
    assert same(Path(outcomes[0][0].strip()), published)


def test_wrong_uris_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"^URI: got 'nope://a/b'; allowed: what pyarrow\.fs opens"):
        fetch("nope://key:secret@a/b?x=1")
    assert [is_uri(text) for text in ("s3://a", "file:///a", "shop", "/a/b", "a:b")] == [
        True,
        True,
        False,
        False,
        False,
    ]
