"""Train a few steps of a run on one worker and on several, and set what was seen side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.stages.features import Features
from recsys_ray.stages.towers import begin
from recsys_ray.stages.work import Data, Scope, Work
from recsys_ray.training.parity.curves import Parity, compare
from recsys_ray.training.parity.on_ray import curves_on_ray
from recsys_ray.training.parity.trace import ENGINES, EngineName

PARITY_FILE = "parity.json"


@dataclass(frozen=True)
class ParityPlan:
    """What is compared.

    Attributes:
        steps: How many steps each trains.
        engines: Which engines.
        workers: How many workers against one.
    """

    steps: int = 50
    engines: tuple[EngineName, ...] = ENGINES
    workers: int = 2

    def __post_init__(self) -> None:
        if self.workers < 2:
            raise ConfigError("--workers", self.workers, "2 or more: they are compared with one")


def parse_engines(text: str) -> tuple[EngineName, ...]:
    """Names of engines, separated by commas.

    Raises:
        ConfigError: When one is unknown, or there is none.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or set(names) - set(ENGINES):
        raise ConfigError("--engines", text, f"some of {','.join(ENGINES)}")
    return tuple(engine for engine in ENGINES if engine in names)


def verify_parity(work: Work, data: Data, features: Features, scope: Scope, plan: ParityPlan) -> Parity:
    """Compare, and leave all steps in STORAGE/parity.json."""
    config = work.config.training
    if plan.workers > config.batch_size:
        raise ConfigError("--workers", plan.workers, f"up to training.batch_size = {config.batch_size}")
    model, train_input = begin(work, data, features, scope)
    say(
        f"parity: {plan.steps} steps on 1 and on {plan.workers} workers at the same global batch of "
        f"{config.batch_size}, in fp32, by SGD, without dropout and clipping"
    )
    work.need_ray()
    runs: Sequence[tuple[int, Sequence[EngineName]]] = ((1, ("plain",)), (plan.workers, plan.engines))
    storage = Path(work.config.storage)
    one, *many = curves_on_ray(model, train_input, config, runs, plan.steps, storage / "parity")
    parity = compare(one, many, say)
    parity.write(storage / PARITY_FILE)
    return parity
