"""Prepare: raw files to a dataset artifact."""

from recsys_ray.core.artifacts import digest_files
from recsys_ray.core.config import result_settings
from recsys_ray.core.errors import DataError
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.pictures import picture_folder
from recsys_ray.data.prepare import input_files
from recsys_ray.data.prepare import prepare as write_dataset
from recsys_ray.stages.work import Data, Work

VERSION = 4


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
    return Data(artifact, load_dataset(artifact, picture_folder(config.data)))


def require_test(work: Work, data: Data) -> None:
    """Stop before hours of work when the split left nothing to measure.

    Raises:
        DataError: When no fold has a test query.
    """
    dataset = data.dataset
    if any(len(fold.test) for fold in dataset.folds):
        return
    longest = int(dataset.events.histories.lengths.max(initial=0))
    raise DataError(
        f"split.protocol={work.config.split.protocol} left no test event: {len(dataset.events)} events of "
        f"{len(dataset.user_ids)} users, the longest history has {longest}; leave_one_out needs users with 3 events"
    )
