"""Fitting the channels of a run: tuned, reused, left out, side by side on Ray."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_ray.config import RunConfig
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.presets import PRESETS
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries
from recsys_ray.stages import channels, dataset, features
from recsys_ray.stages.fitted import Fit, load_fitted
from recsys_ray.stages.runner import StageRunner
from recsys_ray.stages.work import Work, fold_scopes, publish_scope

CHANNELS: dict[str, Any] = {
    "co_visitation": {"kind": "co_visitation", "search": {"decay": [0.4, 0.8], "window": [2, 5]}},
    "popularity": {"kind": "popularity"},
    "content": {"kind": "content", "space": None, "search": {}},
}
Run = Callable[..., Fit]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("channels")
    data = make_synthetic(folder / "raw", users=60, items=50, events_per_user=10, seed=1)
    settings = {"model.text": None, "data": data.model_dump(), "storage": str(folder / "storage"), "channels": CHANNELS}
    return override(PRESETS["tiny"](), settings)


@pytest.fixture
def fit(base: RunConfig) -> Run:
    def run(second: bool = False, **changes: Any) -> Fit:
        config = override(base, {path.replace("__", "."): value for path, value in changes.items()})
        with Work(config, StageRunner(Path(config.storage) / "artifacts")) as work:
            data = dataset.prepare(work)
            frozen = features.features(work, data)
            first = channels.fit(work, data, frozen, None, fold_scopes(data.dataset)[0], channels.configured(work))
            if not second:
                return first
            scope = publish_scope(data.dataset, "all", None)
            return channels.fit(work, data, frozen, None, scope, first.configs())

    return run


def facts(fitted: Fit, name: str) -> dict[str, Any]:
    return read_header(fitted.channels[name].path).facts


def test_what_validation_chose_stands_in_the_channel(fit: Run) -> None:
    fitted = fit()
    tuning = facts(fitted, "co_visitation")["tuning"]
    config = fitted.configs()["co_visitation"]
    assert tuning["trials"] > 1
    assert config.search == {}
    assert {"decay": config.decay, "window": config.window} == tuning["best"]["settings"]
    assert "tuning" not in facts(fitted, "popularity")
    assert fitted.left_out == {}


def test_settings_of_the_search_tune_only_what_searches(fit: Run) -> None:
    before, after = fit(), fit(channel_tuning__seed=5)
    changed = {name for name in before.channels if before.channels[name].id != after.channels[name].id}
    assert changed == {"co_visitation"}
    again = fit(channel_tuning__ray_above_events=7_000)
    assert {name: one.id for name, one in again.channels.items()} == {n: one.id for n, one in before.channels.items()}


def test_the_second_fit_takes_the_choice_and_searches_nothing(fit: Run) -> None:
    first, second = fit(), fit(second=True)
    assert second.configs() == first.configs()
    assert all("tuning" not in facts(second, name) for name in second.channels)
    assert second.channels["co_visitation"].manifest.config["channel"]["search"] == {}


def test_a_channel_that_the_data_has_nothing_for_is_left_out_aloud(
    fit: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user_id,item_id\n" + "".join(f"u{n // 6},i{n * 7 % 11}\n" for n in range(120)))
    changes = {
        "data": {"events": str(events)},
        "storage": str(tmp_path / "storage"),
        "channels": {"trending": {"kind": "trending"}, "popularity": {"kind": "popularity"}},
    }
    for _ in range(2):  # the second time the answer is reused
        fitted = fit(**changes)
        assert set(fitted.channels) == {"popularity"}
        assert "their timestamps are positions, not dates" in fitted.left_out["trending"]
        assert "channel trending is left out on fold 1: channel 'trending' needs events" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"channels: got \['trending'\].*positions, not dates"):
        fit(**{**changes, "channels": {"trending": {"kind": "trending"}}})


def test_folds_keep_the_channels_that_all_of_them_have(fit: Run) -> None:
    whole = fit()
    lacking = whole.without({"content": "no words"})
    assert channels.agreed([whole]) == [whole]
    for fitted in channels.agreed([whole, lacking]):
        assert list(fitted.channels) == ["co_visitation", "popularity"]
        assert fitted.left_out == {"content": "no words (fold 1)"}


def test_only_channels_that_count_or_answer_other_questions_are_served(
    fit: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = fit()
    silent = Fusion(weights={"co_visitation": 0, "content": 0, "popularity": 0})
    heard = channels.heard(fitted, silent)
    assert list(heard.channels) == ["popularity", "content"]
    assert "channel co_visitation is not served: validation gives it no weight" in capsys.readouterr().err
    assert channels.heard(fitted, Fusion.equal(list(fitted.channels), 10)) is fitted


@pytest.fixture
def on_ray(fit: Run, tmp_path: Path, ray_cluster: None) -> Iterator[Fit]:
    return fit(storage=str(tmp_path), channel_tuning__ray_above_events=0)


@pytest.mark.ray
def test_side_by_side_on_ray_everything_is_equal(fit: Run, on_ray: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    here = fit()
    assert on_ray.configs() == here.configs()
    for name, artifact in here.channels.items():
        other = on_ray.channels[name]
        assert (other.id, other.path == artifact.path) == (artifact.id, False)
        files = {path: entry for path, entry in artifact.manifest.files.items() if path != "channel.json"}
        assert {path: other.manifest.files[path] for path in files} == files
        tuning = [{**facts(one, name).get("tuning", {}), "seconds": 0} for one in (here, on_ray)]
        assert tuning[0] == tuning[1]
    queries = Queries.of_histories(here.scope.validation.history)
    scores = [load_fitted(one.channels["co_visitation"]).scores(queries) for one in (here, on_ray)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_an_error_of_a_task_arrives_as_it_was_raised(fit: Run, tmp_path: Path) -> None:
    wrong = {**CHANNELS, "pictures": {"kind": "content", "space": "image", "mix": 0.5}}
    with pytest.raises(ConfigError, match=r"channels\.pictures\.space: got 'image'; allowed: none") as caught:
        fit(storage=str(tmp_path), channel_tuning__ray_above_events=0, channels=wrong)
    assert caught.value.setting == "channels.pictures.space"
