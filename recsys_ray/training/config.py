"""Settings of the training."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys_ray.core.config import Config, execution
from recsys_ray.encoders.config import Precision

EngineName = Literal["plain", "deepspeed"]
AVERAGE = 0.995
BATCHES_AHEAD = 2
SPARSE_ABOVE = 100_000


class TrainingConfig(Config):
    """How the towers are trained.

    Sizes are global: the same batch and the same negatives whatever the number of workers, so workers and devices are
    execution settings. The engine and its ZeRO stage are not: they change rounding and what a checkpoint holds.

    Attributes:
        engine: "plain" (torch) or "deepspeed".
        zero_stage: What DeepSpeed shards over the workers: 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters.
        precision: Of products; "auto" is bf16 where the device has it in hardware, else fp32.
        batch_size: Sequences in a step, over all workers.
        epochs: Passes over the training events; also the length of the cosine schedule.
        patience: Stop after so many epochs without a better validation ndcg@10; null never stops early.
        validation_users: Validation ranks for at most so many users, the same ones each time.
        learning_rate: Peak of the schedule.
        schedule: "cosine" falls to 0 over `epochs`, "constant" stays.
        warmup: Share of all steps over which the learning rate rises.
        weight_decay: AdamW's, on matrices only.
        clip_norm: Largest norm of the whole gradient; longer ones are scaled down.
        negatives: How many items each position is compared with, shared by the step. "all", or as many as the catalogue
            has items, is every item once: the full softmax, the best where it can be afforded.
        negatives_popularity: Share of them drawn by popularity, the rest evenly; null is half, where any are drawn.
        hard_negatives: So many of the items that the towers, as of the last epoch, rank first for the users
            of a step, and that these have not chosen, join its negatives at most. They are certain, so that the drawn
            ones stand for the others alone. 0 mines none.
        hard_margin: What has a cosine above this to one of the user's latest items is no hard negative: another edition
            of what was chosen.
        exposed_negatives: So many of the items that the users of a step were shown (`data.exposures`) before what they
            chose then, and never chose, join its negatives at most, each for that one position alone. 0 takes none.
        exposed_weight: As how many items one of them counts there.
        max_history: A sequence is cut into windows of so many events; null takes what the user tower reads.
        matryoshka: Lengths of prefixes of the vectors that are to be good vectors too: each has its own loss, and the
            loss is the mean over them and the whole (Kusupati et al. 2022, arXiv:2205.13147). `index.dim` cuts to one.
        alignment: Weight in the loss of drawing an item's text and picture together (InfoNCE over items with both).
        alignment_items: How many such items a step aligns, over all workers.
        event_weights: Weigh each target by its event's weight.
        offload: Keep DeepSpeed's optimizer, or its share of it, in the memory of the CPU; from ZeRO stage 1 on.
        items_at_once: Gradient caching: encode the items of a step so many at a time, keep no activations, and encode
            them again in the backward pass, so that memory does not bound the negatives. Null encodes all at once.
        universal_checkpoints: Let another number of workers go on from a checkpoint of ZeRO: its shards are then put
            together, once, by DeepSpeed's universal format.
        checkpoint_steps: Keep a checkpoint within an epoch too, every so many steps; null keeps one an epoch.
        batches_ahead: So many batches are made in a thread while the device is busy with this one, to the same result.
            "auto" is 2 with a GPU, and 0 without, where the thread would take a core beside `cpus`.
        sparse_tables: Embedding tables (ids, attributes) of more rows than this are updated row by row, so that a step
            costs what the rows in it cost, with the result of AdamW over the whole table. "auto" is 100,000 with the
            plain engine and none with DeepSpeed, which shards whole tables; null is none.
        average: Keep an exponential average of the weights, with this decay a step, and evaluate and return that.
            "auto" is 0.995 with the plain engine and none with DeepSpeed, whose weights are sharded.
        seed: Of weights, shuffling, negatives and dropout.
        workers: Ray Train workers; 0 trains in this process without Ray.
        min_workers: Where the cluster has not room for `workers`, or loses some, train on as few as this; null waits
            for all. The shards of ZeRO are those of so many workers: there it takes `universal_checkpoints`.
        cpus: CPU cores, and torch threads, of each worker, or of this process.
        gpus: GPUs of each worker, or of this process.
        max_failures: How often Ray Train restarts after a lost worker.
    """

    engine: EngineName = "plain"
    zero_stage: Literal[0, 1, 2, 3] = 0
    precision: Precision = "auto"
    batch_size: int = Field(128, ge=1)
    epochs: int = Field(30, ge=1)
    patience: int | None = Field(5, ge=1)
    validation_users: int = Field(10_000, ge=1)
    learning_rate: float = Field(4e-3, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: float = Field(0.02, ge=0, lt=1)
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float | None = Field(1.0, gt=0)
    negatives: int | Literal["all"] = 4096
    negatives_popularity: float | None = Field(None, ge=0, le=1)
    hard_negatives: int = Field(0, ge=0)
    hard_margin: float = Field(0.95, gt=0, le=1)
    exposed_negatives: int = Field(0, ge=0)
    exposed_weight: float = Field(10.0, gt=0)
    max_history: int | None = Field(None, ge=1)
    matryoshka: tuple[Annotated[int, Field(ge=1)], ...] = ()
    alignment: float = Field(0.0, ge=0)
    alignment_items: int = Field(512, ge=2)
    event_weights: bool = False
    offload: bool = execution(False)
    universal_checkpoints: bool = execution(False)
    items_at_once: int | None = execution(None, ge=1)
    checkpoint_steps: int | None = execution(None, ge=1)
    batches_ahead: Annotated[int, Field(ge=0)] | Literal["auto"] = execution("auto")
    sparse_tables: int | Literal["auto"] | None = execution("auto")
    average: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = "auto"
    seed: int = Field(0, ge=0)
    workers: int = execution(2, ge=0)
    min_workers: int | None = execution(None, ge=1)
    cpus: int = execution(1, ge=1)
    gpus: Literal[0, 1] = execution(0)
    max_failures: int = execution(3, ge=0)

    @property
    def averaging(self) -> float | None:
        """The decay that `average` comes to."""
        if self.average == "auto":
            return AVERAGE if self.engine == "plain" else None
        return self.average

    @property
    def waiting(self) -> int:
        """The batches that `batches_ahead` comes to."""
        if self.batches_ahead == "auto":
            return BATCHES_AHEAD if self.gpus else 0
        return self.batches_ahead

    @property
    def sparse_above(self) -> int | None:
        """The rows that `sparse_tables` comes to."""
        if self.sparse_tables == "auto":
            return SPARSE_ABOVE if self.engine == "plain" else None
        return self.sparse_tables

    @model_validator(mode="after")
    def _takes_effect(self) -> "TrainingConfig":
        if self.negatives != "all" and self.negatives < 1:
            raise ValueError(f'negatives of at least 1 or "all", not {self.negatives}')
        if self.negatives == "all" and self.negatives_popularity is not None:
            raise ValueError('negatives_popularity null when negatives is "all": nothing is drawn')
        if self.engine == "plain" and self.zero_stage:
            raise ValueError(f'zero_stage 0 with engine "plain", not {self.zero_stage}; sharding needs "deepspeed"')
        if self.engine == "deepspeed" and not self.workers:
            raise ValueError('workers of at least 1 with engine "deepspeed": it runs inside Ray Train workers')
        if self.engine == "deepspeed" and isinstance(self.average, float):
            raise ValueError('average auto or null with engine "deepspeed": its weights are sharded')
        return self

    @model_validator(mode="after")
    def _further_negatives_are_further(self) -> "TrainingConfig":
        for name in ("hard_negatives", "exposed_negatives"):
            if 0 < getattr(self, name) < self.batch_size:
                raise ValueError(f"{name} of 0, or at least batch_size = {self.batch_size}: one for each sequence")
        if self.negatives == "all" and self.hard_negatives:
            raise ValueError('hard_negatives 0 when negatives is "all": every item is one already')
        if self.negatives == "all" and self.exposed_negatives and self.exposed_weight == 1:
            raise ValueError('exposed_weight other than 1 when negatives is "all": each counts once already')
        return self

    @model_validator(mode="after")
    def _workers_fit(self) -> "TrainingConfig":
        if self.offload and not self.zero_stage:
            raise ValueError('offload false without a zero_stage of 1 to 3 and engine "deepspeed"')
        if isinstance(self.sparse_tables, int) and self.engine == "deepspeed":
            raise ValueError('sparse_tables auto or null with engine "deepspeed": it shards and updates whole tables')
        if isinstance(self.sparse_tables, int) and self.sparse_tables < 0:
            raise ValueError(f'sparse_tables of at least 0, "auto" or null, not {self.sparse_tables}')
        if self.universal_checkpoints and not self.zero_stage:
            raise ValueError("universal_checkpoints false without a zero_stage of 1 to 3: there are no shards")
        if self.min_workers is not None and self.engine == "deepspeed" and not self.universal_checkpoints:
            raise ValueError(
                'min_workers null with engine "deepspeed": its shards are those of so many workers. '
                "With a zero_stage of 1 to 3, universal_checkpoints true puts them together for another number"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers up to workers = {self.workers}, not {self.min_workers}")
        if self.workers > self.batch_size:
            raise ValueError(f"workers up to batch_size = {self.batch_size}: each needs a sequence in every step")
        return self
