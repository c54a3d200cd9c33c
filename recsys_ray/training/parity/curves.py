"""What a check of parity measures, and when two measurements are the same but for rounding."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TOLERANCE = 1e-5
"""Largest relative difference that counts as rounding, in fp32."""

ROWS = 12
QUANTITIES = ("losses", "norms")
TITLES = {"losses": "loss", "norms": "gradient norm"}


@dataclass(frozen=True)
class Curve:
    """What was seen at each step.

    Attributes:
        engine: "plain" or "zero0" to "zero3".
        workers: How many there were.
        losses: The loss of the global batch, before the update.
        norms: The Euclidean norm of its whole gradient.
    """

    engine: str
    workers: int
    losses: tuple[float, ...]
    norms: tuple[float, ...]

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.engine} x{self.workers}"

    def of(self, quantity: str) -> tuple[float, ...]:
        """One of `QUANTITIES`."""
        return self.losses if quantity == "losses" else self.norms


@dataclass(frozen=True)
class Parity:
    """One worker against several, at the same global batches.

    Attributes:
        one: A single worker on the plain engine.
        many: The engines under test.
    """

    one: Curve
    many: tuple[Curve, ...]

    def difference(self, curve: Curve, quantity: str) -> float:
        """The largest relative difference over the steps; infinite where one of the two is no number."""
        pairs = zip(self.one.of(quantity), curve.of(quantity), strict=True)
        return max(_relative(expected, came) for expected, came in pairs)

    def failures(self) -> list[str]:
        """One line for each quantity of each engine that differs by more than rounding, and where it begins to."""
        return [
            f"{curve.name}: the {TITLES[quantity]} differs from one worker's by up to "
            f"{self.difference(curve, quantity):.1e} (relative), from step {self._first(curve, quantity)} on; "
            f"{TOLERANCE:g} is rounding"
            for curve in self.many
            for quantity in QUANTITIES
            if self.difference(curve, quantity) > TOLERANCE
        ]

    def lines(self) -> list[str]:
        """Both curves as tables, at no more than about a dozen of the steps, with the largest difference of all."""
        return [line for quantity in QUANTITIES for line in self._table(quantity)]

    def write(self, path: Path) -> None:
        """All steps as JSON, with the largest differences."""
        differences = {
            curve.engine: {quantity: self.difference(curve, quantity) for quantity in QUANTITIES} for curve in self.many
        }
        content = {**asdict(self), "differences": differences, "tolerance": TOLERANCE, "equal": not self.failures()}
        path.write_text(json.dumps(content, indent=1) + "\n")

    def _table(self, quantity: str) -> list[str]:
        curves = (self.one, *self.many)
        rows = [_row(TITLES[quantity], [curve.name for curve in curves])]
        for step in _some(len(self.one.losses)):
            rows.append(_row(f"step {step}", [f"{curve.of(quantity)[step]:.7f}" for curve in curves]))
        apart = [f"{self.difference(curve, quantity):.1e}" for curve in self.many]
        return [*rows, _row("difference", ["", *apart]), ""]

    def _first(self, curve: Curve, quantity: str) -> int:
        pairs = zip(self.one.of(quantity), curve.of(quantity), strict=True)
        return next(step for step, pair in enumerate(pairs) if _relative(*pair) > TOLERANCE)


def compare(one: Curve, many: Sequence[Curve], say: Callable[[str], None]) -> Parity:
    """Put the curves side by side, and say which are the same."""
    parity = Parity(one, tuple(many))
    for curve in many:
        loss, norm = (parity.difference(curve, quantity) for quantity in QUANTITIES)
        verdict = "equal" if max(loss, norm) <= TOLERANCE else "NOT EQUAL"
        say(f"{curve.name}: largest difference {loss:.1e} in the loss, {norm:.1e} in the gradient norm: {verdict}")
    return parity


def _relative(expected: float, came: float) -> float:
    if expected == came:
        return 0.0
    difference = abs(came - expected) / max(abs(expected), abs(came))
    return difference if math.isfinite(difference) else math.inf


def _some(count: int) -> list[int]:
    """At most `ROWS` and a last one of `count` steps."""
    every = -(-count // ROWS)
    return sorted({*range(0, count, every), count - 1})


def _row(first: str, cells: Sequence[str]) -> str:
    return f"{first:<14}" + "".join(f"{cell:>13}" for cell in cells)
