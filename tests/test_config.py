"""Configuration files, presets, and the errors a user reads."""

import pytest
import yaml

from recsys_ray.config import RunConfig, dump_config, load_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.presets import PRESETS, load_preset


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_survives_a_file(name, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(dump_config(PRESETS[name]()))
    assert load_config(file, RunConfig()) == PRESETS[name]()


def test_file_may_hold_a_part(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("split: {cuts: 3}\nchannels: {co_visitation: {window: 4}}\n")
    config = load_config(file, RunConfig())
    assert config.split.cuts == 3
    assert config.channels["co_visitation"].window == 4
    assert set(config.channels) == set(RunConfig().channels)


def test_assignments_win_over_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("split: {cuts: 3}\n")
    config = load_preset("cpu", file, ["split.cuts=2", "channels.content=null"], tmp_path)
    assert config.split.cuts == 2
    assert config.channels["content"] is None
    assert config.storage == str(tmp_path)


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("split.protocl=x", r"split.protocl: .*allowed: .*protocol"),
        ("split.protocol=random", r"split.protocol: got 'random'; allowed: 'leave_one_out'"),
        ("training.batch_size=0", r"training.batch_size: got 0; allowed: greater than or equal to 1"),
        ("channels.co_visitation.windw=3", r"channels.co_visitation.windw.*window"),
        ("split.cuts.deep=3", r"split.cuts.deep: .*plain value"),
        ("channels={}", r"channels: got {}; allowed: at least one channel"),
        ("channels.fused={kind: popularity}", r"channels: .*other than 'fused'"),
        ("channels.../x={kind: popularity}", r"channels"),
        ("fusion.temperatures.nearest=[]", r"fusion.temperatures.nearest: got \[\]"),
        ("fusion.temperatures.nearest=[0]", r"fusion.temperatures.nearest.0: got 0; allowed: greater than 0"),
        ("fusion.objective={}", r"fusion.objective: got {}; allowed: "),
        ("fusion.objective={recall@11: 1}", r"fusion.objective: .*recall@10"),
        ("training.batch_size", r"--set: got 'training.batch_size'; allowed: dotted.path=value"),
        ("name=[1", r"name: got '\[1'; allowed: a YAML value"),
    ],
)
def test_wrong_assignments_say_what_is_allowed(assignment, message):
    with pytest.raises(ConfigError, match=message):
        load_preset("cpu", None, [assignment])


def test_unknown_preset():
    with pytest.raises(ConfigError, match=r"preset: got 'gpu9'; allowed: .*cpu"):
        load_preset("gpu9", None, [])


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [\n"])
def test_file_that_is_no_mapping(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="--config"):
        load_config(file, RunConfig())


def test_dump_is_yaml_of_every_setting():
    values = yaml.safe_load(dump_config(RunConfig()))
    assert set(values) == set(RunConfig.model_fields)


def test_override_leaves_the_original_alone():
    config = RunConfig()
    assert override(config, {"model.dim": 32}).model.dim == 32
    assert config.model.dim == RunConfig().model.dim


def test_exposed_negatives_want_kinds_of_events_that_are_exposures() -> None:
    with pytest.raises(ConfigError, match=r"training\.exposed_negatives: got 500; allowed: 0 here\. Name in data"):
        override(RunConfig(), {"training.exposed_negatives": 500})
    both = override(RunConfig(), {"data.exposures": ["impression"], "training.exposed_negatives": 500})
    assert both.data.exposures == ("impression",)
