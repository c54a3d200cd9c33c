"""How the report is computed."""

from typing import Self

from pydantic import Field, model_validator

from recsys_ray.core.config import Config, execution


class EvaluationConfig(Config):
    """How the report is computed.

    Attributes:
        bootstrap_samples: Resamples of the users behind each confidence interval.
        max_users: Evaluate a random sample of this many queries per fold and part; None evaluates all.
        sample_users: What each channel contributes, and what is found for users with a short history, is measured on
            a random sample of this many test queries over all folds; 0 leaves both out.
        modalities: What each modality of the items is worth to the towers is measured on a random sample of this many
            test queries over all folds; 0 leaves it out.
        refit: Also fit towers and channels a second time, on train and validation, with what validation chose, and
            rank test again; the report shows both.
        head_share: The most popular items that together hold this share of the training events are the head.
        tail_share: The least popular items that together hold this share are the tail; between them is mid.
        seed: Of the samples of users and of the bootstrap.
        block_bytes: Memory for the scores of one block of queries.
        shards: 1 ranks in this process; more ranks that many parts of the queries as Ray tasks; None takes every CPU
            where the work is long enough to be worth it.
    """

    bootstrap_samples: int = Field(1000, ge=100, le=100_000)
    max_users: int | None = Field(None, ge=1)
    sample_users: int = Field(3000, ge=0)
    modalities: int = Field(2000, ge=0)
    refit: bool = False
    head_share: float = Field(0.5, gt=0, lt=1)
    tail_share: float = Field(0.2, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    block_bytes: int = execution(64 * 1024**2, ge=1)
    shards: int | None = execution(None, ge=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.head_share + self.tail_share > 1:
            raise ValueError("head_share + tail_share of at most 1")
        return self
