"""A whole run on small synthetic data, without Ray: what it leaves, what it reuses, what survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import recsys_ray
from recsys_ray.config import RunConfig, dump_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import ArtifactError, ConfigError, DataError
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.evaluation.ranks import RANKS_FILE, Ranks
from recsys_ray.pipeline import run, validate
from recsys_ray.presets import PRESETS

pytestmark = pytest.mark.slow

IN_PROCESS = {"training.workers": 0, "model.text": None, "channels.content.space": None}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    data = make_synthetic(folder / "raw", users=150, items=90, events_per_user=12, seed=3)
    base = override(PRESETS["tiny"](), {**IN_PROCESS, "storage": str(folder / "storage"), "data": data.model_dump()})
    return override(base, {"training.epochs": 2})


@pytest.fixture(scope="module")
def result(config):
    return run(config)


def artifacts(storage: Path) -> dict[str, float]:
    """Artifact to the time its manifest was written."""
    paths = (storage / "artifacts").glob("*/*/manifest.json")
    return {str(path.parent.relative_to(storage)): path.stat().st_mtime for path in paths}


def test_report_has_the_agreed_shape(result, config):
    report = json.loads((Path(config.storage) / "report.json").read_text())
    assert set(report) >= {
        "dataset",
        "users",
        "items",
        "protocol",
        "refit",
        "seed",
        "metrics",
        "validation",
        "buckets",
        "index",
        "seconds",
    }
    assert set(report["metrics"]) == {"fused", *config.channels}
    assert set(report["metrics"]["fused"]) >= {"recall@10", "ndcg@10", "recall@100", "coverage@10", "ci95"}
    assert set(report["buckets"]) >= {"head", "mid", "tail", "cold"}
    assert (Path(config.storage) / "report.html").stat().st_size > 10_000


def test_release_answers_in_three_lines(result, config):
    release = recsys_ray.load_release(config.storage)
    history = release.histories.get("u1") if "u1" in release.histories else release.item_ids.ids[:3]
    items = release.recommend(history=history, k=20)
    assert len(items) == 20
    assert not {item.item_id for item in items} & set(history)


def test_served_histories_are_those_of_all_events(result, config):
    dataset = result.load_dataset()
    release = recsys_ray.load_release(config.storage)
    user = dataset.user_ids.external(0)
    assert release.histories.get(user) == dataset.item_ids.externals(dataset.events.histories[0])


def test_second_run_makes_nothing(result, config):
    before = artifacts(Path(config.storage))
    run(config)
    assert artifacts(Path(config.storage)) == before


def test_execution_settings_do_not_refit(result, config):
    before = artifacts(Path(config.storage))
    run(override(config, {"embedding.batch_size": 7, "evaluation.block_bytes": 10_000_000}))
    assert artifacts(Path(config.storage)) == before


def test_a_channel_setting_refits_that_channel_alone(result, config):
    before = set(artifacts(Path(config.storage)))
    run(override(config, {"channels.co_visitation.window": 3}), until="fit")
    new = set(artifacts(Path(config.storage))) - before
    assert {path.split("/")[1] for path in new} == {"channel"}
    assert len(new) == 1


def test_a_setting_of_the_index_refits_only_what_searches_one(result, config):
    before = set(artifacts(Path(config.storage)))
    run(override(config, {"index.max_queries": 40}), until="fit")
    made = set(artifacts(Path(config.storage))) - before
    assert [
        json.loads((Path(config.storage) / path / "manifest.json").read_text())["config"]["name"] for path in made
    ] == ["nearest"]


def test_the_seed_of_the_validation_sample_chooses_the_fusion_anew(result, config):
    before = set(artifacts(Path(config.storage)))
    run(override(config, {"evaluation.seed": 9}), until="evaluate")
    new = {path.split("/")[1] for path in set(artifacts(Path(config.storage))) - before}
    assert new == {"fusion", "modalities", "report"}


def test_a_fitted_channel_that_was_changed_is_refused(config, tmp_path):
    changed = override(config, {"storage": str(tmp_path), "channels": {"popularity": {"kind": "popularity"}}})
    run(changed, until="fit")
    file = next(tmp_path.glob("artifacts/channel/*/scores.npy"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"scores\.npy.*does not hash"):
        run(changed, until="evaluate")


def test_a_changed_event_file_is_noticed(config, tmp_path):
    first = run(override(config, {"storage": str(tmp_path)}), until="prepare")
    data = make_synthetic(tmp_path / "raw", users=150, items=90, events_per_user=11, seed=3)
    second = run(override(config, {"storage": str(tmp_path), "data": data.model_dump()}), until="prepare")
    assert first.dataset.id != second.dataset.id


def test_strict_release_serves_what_was_measured(result, config):
    before = set(artifacts(Path(config.storage)))
    strict = run(override(config, {"publish.fit_on": "strict"}))
    new = {path.split("/")[1] for path in set(artifacts(Path(config.storage))) - before}
    assert new == {"release"}
    assert strict.require_release().summary["fitted_on"] == "fold 1"


def test_a_refit_stands_beside_the_strict_fit_and_is_what_is_published(result, config):
    before = set(artifacts(Path(config.storage)))
    refit = run(override(config, {"evaluation.refit": True, "publish.fit_on": "refit"}))
    report = refit.require_report()
    assert report["metrics"] == result.require_report()["metrics"]
    assert result.require_report()["refit"] is None
    assert report["refit"].keys() == report["metrics"].keys()
    assert report["refit"]["co_visitation"] != report["metrics"]["co_visitation"]
    assert refit.require_release().summary["fitted_on"] == "fold 1 with its validation"
    new = [path.split("/")[1] for path in set(artifacts(Path(config.storage))) - before]
    assert new.count("towers") == new.count("report") == new.count("release") == 1
    ranks = Ranks.load(Path(config.storage) / RANKS_FILE)
    assert ranks.ranks.keys() >= {"fused", "fused (refit)", "nearest", "nearest (refit)"}
    for name, part in (("fused", report["metrics"]), ("fused (refit)", report["refit"])):
        assert ranks.per_query(name, "ndcg@10").mean() == pytest.approx(part["fused"]["ndcg@10"])


def test_what_each_channel_adds_and_short_histories_are_measured(result, config):
    report = result.require_report()
    assert report["contributions"].keys() == report["metrics"].keys() - {"fused"}
    assert list(report["short_histories"]) == ["0", "attributes", "1", "2", "all"]
    assert report["short_histories"]["all"]["fused"] == report["metrics"]["fused"]  # the sample is everybody
    assert report["warnings"][0].startswith("leave_one_out leaks the future")
    bare = run(override(config, {"evaluation.sample_users": 0}), until="evaluate").require_report()
    assert (bare["contributions"], bare["short_histories"]) == ({}, {})


def test_without_nearest_no_towers_are_trained(config, tmp_path):
    tables = override(config, {"storage": str(tmp_path), "channels.nearest": None})
    report = run(tables).require_report()
    assert "nearest" not in report["metrics"]
    assert not (tmp_path / "artifacts" / "towers").exists()


def test_channels_without_weight_are_neither_fitted_again_nor_served(result, config):
    before = set(artifacts(Path(config.storage)))
    weights = {name: float(name == "co_visitation") for name in config.channels}
    done = run(override(config, {"fusion.weights": weights, "publish.fit_on": "refit"}))
    made = set(artifacts(Path(config.storage))) - before
    assert not {path for path in made if path.split("/")[1] in ("towers", "vectors")}
    release = recsys_ray.load_release(done.require_release().path)
    assert list(release.retriever.channels) == ["co_visitation", "content", "popularity", "trending"]
    assert set(release.retriever.fusion.weights) == {"co_visitation", "content", "popularity", "trending"}
    assert not (done.require_release().path / "towers").exists()
    assert len(release.recommend(history=release.item_ids.ids[:3], k=5)) == 5
    assert all(channel.config.search == {} for channel in release.retriever.channels.values())


def test_a_split_without_test_events_stops_at_once(config, tmp_path):
    (tmp_path / "e.csv").write_text("user_id,item_id\n" + "".join(f"u{n // 2},i{n % 3}\n" for n in range(20)))
    data = {"data": {"events": str(tmp_path / "e.csv")}, "storage": str(tmp_path / "storage")}
    with pytest.raises(DataError, match=r"left no test event: 20 events of 10 users, the longest history has 2"):
        run(override(config, data))


def test_a_catalogue_smaller_than_any_list(config, tmp_path):
    lines = "".join(f"ü{n // 4},日{n % 5},{1600000000 + n}\n" for n in range(40))
    (tmp_path / "e.csv").write_text("user_id,item_id,timestamp\n" + lines)
    data = {"data": {"events": str(tmp_path / "e.csv")}, "storage": str(tmp_path / "storage")}
    run(override(config, data))
    release = recsys_ray.load_release(tmp_path / "storage")
    assert {item.item_id for item in release.recommend(history=["日1"], k=50)} == {"日0", "日2", "日3", "日4"}


def test_rolling_cuts_are_pooled(config, tmp_path):
    cuts = {"storage": str(tmp_path), "channels.nearest": None, "split.protocol": "global_time", "split.cuts": 2}
    report = run(override(config, cuts), until="evaluate").require_report()
    assert report["protocol"] == "global_time"


def test_unknown_stage_is_refused(config):
    with pytest.raises(ConfigError, match="until: got 'deploy'; allowed: prepare"):
        run(config, until="deploy")


def test_a_killed_run_goes_on(config, result, tmp_path, wait_until):
    """SIGKILL right after the towers are trained; the same command finishes, with the undisturbed run's report."""
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(override(config, {"storage": str(tmp_path)})))
    command = [sys.executable, "-m", "recsys_ray", "run", "--config", str(file), "--storage", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    wait_until(lambda: list(tmp_path.glob("artifacts/towers/*/manifest.json")) or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "report.json").exists()
    kept = artifacts(tmp_path)
    assert kept
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert kept.items() <= artifacts(tmp_path).items()
    mended = json.loads((tmp_path / "report.json").read_text())
    assert mended["metrics"] == result.require_report()["metrics"]


def test_the_printed_configuration_is_a_configuration(config):
    assert RunConfig.parse(yaml.safe_load(dump_config(config))) == config


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_sharded_evaluation_is_equal(result, config, tmp_path):
    plain = result.require_report()
    storage = Path(config.storage)
    for folder in (storage / "artifacts" / "report").iterdir():
        shutil.rmtree(folder)
    sharded = run(override(config, {"evaluation.shards": 2}), until="evaluate").require_report()
    assert sharded["metrics"] == plain["metrics"]
    assert sharded["buckets"] == plain["buckets"]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_on_ray_the_same_embedding_and_a_full_run(result, config, tmp_path):
    settings = {"storage": str(tmp_path), "training.workers": 2, "training.epochs": 1, "embedding.ray_above_items": 0}
    done = run(override(config, settings))
    assert done.require_report()["metrics"]["nearest"]["recall@100"] > 0
    assert len(recsys_ray.load_release(tmp_path).recommend(history=["i1"], k=5)) == 5


@pytest.mark.weights
def test_packaged_text_model_feeds_towers_content_and_search(config, tmp_path):
    changes = {
        "storage": str(tmp_path),
        "model.text": {"backbone": "package:minilm"},
        "channels.content.space": "auto",
        "channels.by_text": {"kind": "nearest", "space": "text"},
    }
    report = run(override(config, changes)).require_report()
    assert "by_text" in report["metrics"]
    release = recsys_ray.load_release(tmp_path)
    found = release.search("ocean", k=5)
    assert len(found) == 5
    assert any("by_text" in item.channels for item in found)


def test_validation_alone_is_what_the_report_says_and_leaves_no_report(config, result):
    report = result.require_report()["validation"]
    before = artifacts(Path(config.storage))
    found = validate(config)
    assert {name: found[name]["recall@10"] for name in found} == pytest.approx(
        {name: values["recall@10"] for name, values in report.items()}
    )
    made = set(artifacts(Path(config.storage))) - set(before)
    assert {name.split("/")[1] for name in made} == {"validation"}
