from pathlib import Path

import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError, NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.popularity import PopularityConfig, load
from recsys_ray.retrieval.channels.unpersonalised import UnpersonalisedChannel, require_real_time
from recsys_ray.retrieval.query import Queries


def make_channel() -> UnpersonalisedChannel:
    return UnpersonalisedChannel.of("all", PopularityConfig(), np.array([2, 0, 5, 2, 1], np.float32))


def test_best_first_equal_ones_by_row_and_nothing_without_a_score() -> None:
    channel = make_channel()
    found = channel.retrieve(Queries.of_histories(Ragged.of([[], [2, 4]])), 4)
    assert found.rows.tolist() == [[2, 0, 3, 4], [0, 3, -1, -1]]
    assert found.scores[0].tolist() == [5, 2, 2, 1]
    assert not channel.reads


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    make_channel().save(tmp_path)
    (tmp_path / "scores.npy").write_bytes(b"no array")
    with pytest.raises(ArtifactError, match=r"scores\.npy cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(("times", "reason"), [([1, 2, 3], "positions, not dates"), ([], "there are no events")])
def test_time_that_is_none_is_refused_with_the_reason(times: list[int], reason: str) -> None:
    zeros = np.zeros(len(times), np.int64)
    events = Events.from_columns(zeros, zeros, np.array(times, np.int64), zeros.astype(np.float32), 1, 1)
    with pytest.raises(NotApplicable, match=f"'mine'.*{reason}"):
        require_real_time("mine", events)
