"""Prepare: raw files to a dataset artifact."""

from recsys_ray.core.artifacts import digest_files
from recsys_ray.core.config import result_settings
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.prepare import input_files
from recsys_ray.data.prepare import prepare as write_dataset
from recsys_ray.stages.work import Data, Work

VERSION = 1


def prepare(work: Work) -> Data:
    """Read, validate, clean, split; a new artifact whenever the content of an input file or a setting changed."""
    config = work.config
    artifact = work.runner.run(
        "dataset",
        VERSION,
        {"data": result_settings(config.data), "split": result_settings(config.split)},
        {},
        lambda directory: write_dataset(config.data, config.split, directory),
        label="prepare",
        inputs=digest_files(input_files(config.data, config.split)),
    )
    return Data(artifact, load_dataset(artifact))
