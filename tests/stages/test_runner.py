import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from recsys_ray.stages.runner import StageRunner


def test_two_runs_that_want_the_same_artifact_make_it_once(tmp_path):
    """One waits while the other makes it, and then finds it."""
    both_are_there, makers = threading.Barrier(2), []

    def make(directory: Path) -> dict[str, int]:
        makers.append(threading.get_ident())
        (directory / "file").write_text("content")
        return {"rows": 1}

    def want(_: int) -> str:
        runner = StageRunner(tmp_path)
        assert not runner.has("kind", 1, {}, {})
        both_are_there.wait()
        return runner.run("kind", 1, {}, {}, make).id

    with ThreadPoolExecutor(2) as pool:
        ids = list(pool.map(want, range(2)))
    assert ids[0] == ids[1]
    assert len(makers) == 1
