"""From a space to a served release: what is measured, what is trained, what the file of an id brings about."""

import json
from pathlib import Path

import pytest

import recsys_ray
from recsys_ray.config import RunConfig, load_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, RecsysError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.index.faiss_index import FaissIndex
from recsys_ray.index.prefix import PrefixIndex
from recsys_ray.pipeline import run
from recsys_ray.presets import PRESETS
from tune.candidates import require_space, trainings
from tune.front import Point, Target
from tune.pareto import FRONT_FILE, FRONT_FOLDER, PAGE_FILE, pareto
from tune.spaces import Space, parse_space

pytestmark = pytest.mark.slow

ONE_CHANNEL_MORE = {"co_visitation": None, "item_knn": None, "content": None, "trending": None}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    pytest.importorskip("faiss")
    folder = tmp_path_factory.mktemp("pareto")
    data = make_synthetic(folder / "raw", users=120, items=300, events_per_user=12, seed=3)
    changes = {"model.text": None, "data": data.model_dump(), "storage": str(folder / "storage")}
    changes |= {f"channels.{name}": value for name, value in ONE_CHANNEL_MORE.items()}
    return override(PRESETS["tiny"](), {**changes, "publish.fit_on": "strict", "model.dim": 16})


@pytest.fixture(scope="module")
def space() -> Space:
    values = {
        "model.user.blocks": [1, 2],
        "index.dim": [None, 8],
        "index.factory": ["exact", "SQfp16"],
    }
    return parse_space({path: {"kind": "choice", "values": choices} for path, choices in values.items()})


@pytest.fixture(scope="module")
def chosen(config: RunConfig, space: Space) -> Point:
    """Any recall is enough: the smaller towers with the smallest index."""
    return pareto(config, space, trials=4, target=Target(min_recall=1e-9))


def count(config: RunConfig, kind: str) -> int:
    return len(list((Path(config.storage) / "artifacts" / kind).glob("*/manifest.json")))


def test_each_towers_are_trained_once_and_every_index_measured_on_them(config, chosen):
    document = json.loads((Path(config.storage) / FRONT_FILE).read_text())
    measured = [*document["front"], *document["others"]]
    assert len(measured) == 2 * 2 * 2
    assert count(config, "towers") == 2
    assert all(0 < one["measured"]["p50_ms"] <= one["measured"]["p95_ms"] for one in measured)
    assert count(config, "report") == 0  # nobody looked at test
    assert chosen.fused["recall@100"] > 0
    assert {path.stem for path in (Path(config.storage) / FRONT_FOLDER).iterdir()} == {
        one["id"] for one in document["front"]
    }
    assert document["chosen"] == chosen.id
    assert chosen.id in (Path(config.storage) / PAGE_FILE).read_text()


def test_exact_search_over_all_numbers_finds_what_the_channel_alone_finds(config, chosen):
    document = json.loads((Path(config.storage) / FRONT_FILE).read_text())
    whole = {"model.user.blocks": 1, "index.dim": None, "index.factory": "exact", "index.parameters": ""}
    (exact,) = [one for one in [*document["front"], *document["others"]] if one["settings"] == whole]
    report = run(override(config, {"model.user.blocks": 1}), until="evaluate").require_report()
    assert exact["measured"]["recall"] == pytest.approx(report["validation"]["nearest"]["recall@100"], abs=1e-9)


def test_its_id_is_published_without_training_and_answers(config, chosen):
    trained = count(config, "towers")
    file = Path(config.storage) / FRONT_FOLDER / f"{chosen.id}.yaml"
    result = run(load_config(file, PRESETS["cpu"]()))  # as `recsys-ray run --config` does
    assert count(config, "towers") == trained
    release = recsys_ray.load_release(result.require_release().path)
    index = release.retriever.channels["nearest"].index
    assert isinstance(index, PrefixIndex)
    assert (index.dim, index.vectors.shape[1]) == (8, 16)
    assert isinstance(index.inner, FaissIndex)
    # What was measured is what is served, to the byte.
    folder = release.artifact.path / "channels" / "nearest"
    searched = folder / "index" / "prefix" / "index.faiss"
    assert chosen.measured.searched_bytes == searched.stat().st_size
    towers = [path for path in (release.artifact.path / "towers").rglob("*") if path.is_file()]
    assert chosen.measured.encoder_bytes == sum(path.stat().st_size for path in towers if path.name != "manifest.json")
    assert len(release.recommend(history=release.item_ids.ids[:3], k=10)) == 10


def test_where_nothing_meets_the_target_the_front_is_there_and_the_best_is_told(config, chosen):
    space = parse_space({"index.factory": {"kind": "choice", "values": ["exact"]}})
    with pytest.raises(RecsysError, match=r"no configuration meets recall@100 >= 1, p95 <= 0.001 ms; the highest"):
        pareto(config, space, 1, Target(max_p95_ms=0.001, min_recall=1.0))
    assert json.loads((Path(config.storage) / FRONT_FILE).read_text())["chosen"] is None


def test_what_cannot_be_varied_is_refused(config):
    with pytest.raises(ConfigError, match=r"index.k: .*allowed: index.dim and index.factory"):
        require_space(parse_space({"index.k": {"kind": "choice", "values": [10]}}))
    with pytest.raises(ConfigError, match="over the towers"):
        pareto(override(config, {"channels.nearest": None}), {}, 1, Target())
    with pytest.raises(ConfigError, match=r"index.dim: got 17; allowed: at most 16"):
        pareto(config, parse_space({"index.dim": {"kind": "choice", "values": [17]}}), 1, Target())


def test_more_combinations_than_trainings_are_drawn_from(config):
    space = parse_space(
        {
            "model.dim": {"kind": "choice", "values": [16, 32, 64]},
            "model.user.blocks": {"kind": "choice", "values": [1, 2]},
            "index.dim": {"kind": "choice", "values": [8]},
        }
    )
    assert len(trainings(space, config, 6)) == 6
    few = trainings(space, config, 3)
    assert 1 <= len(few) <= 3
    assert all(one.keys() == {"model.dim", "model.user.blocks"} for one in few)
    assert trainings(space, config, 3) == few
    assert trainings({}, config, 3) == [{}]
