"""When two curves are the same, and what is said of those that are not."""

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.training.parity.curves import TOLERANCE, Curve, Parity, compare

ONE = Curve("plain", 1, (4.0, 3.5, 3.0), (2.0, 1.5, 1.0))


def against(losses: tuple[float, ...], norms: tuple[float, ...]) -> Parity:
    return Parity(ONE, (Curve("zero2", 2, losses, norms),))


def test_rounding_is_no_difference() -> None:
    parity = against((4.0, 3.5 * (1 + 4e-6), 3.0), (2.0, 1.5, 1.0 - 4e-6))
    assert parity.failures() == []
    assert parity.difference(parity.many[0], "losses") < TOLERANCE


def test_a_gradient_that_is_off_is_named_with_its_first_step() -> None:
    (failure,) = against(ONE.losses, (2.0, 1.5 + 1e-4, 1.0)).failures()
    assert "zero2 x2: the gradient norm differs" in failure
    assert "from step 1 on" in failure


@given(st.floats(allow_nan=True), st.integers(0, 2))
def test_whatever_came_it_is_equal_or_a_failure(value: float, step: int) -> None:
    losses = tuple(value if place == step else loss for place, loss in enumerate(ONE.losses))
    near = math.isclose(value, ONE.losses[step], rel_tol=TOLERANCE, abs_tol=0)
    assert (against(losses, ONE.norms).failures() == []) == near


def test_all_steps_are_in_the_file_and_a_dozen_in_the_table(tmp_path: Path) -> None:
    long = Curve("plain", 1, tuple(map(float, range(1, 51))), (1.0,) * 50)
    said: list[str] = []
    parity = compare(long, [Curve("zero3", 4, long.losses, (2.0,) * 50)], said.append)
    parity.write(tmp_path / "parity.json")
    written = json.loads((tmp_path / "parity.json").read_text())
    assert written["many"][0]["losses"] == list(long.losses)
    assert written["differences"] == {"zero3": {"losses": 0.0, "norms": 0.5}}
    assert written["equal"] is False
    assert said == ["zero3 x4: largest difference 0.0e+00 in the loss, 5.0e-01 in the gradient norm: NOT EQUAL"]
    rows = [line for line in parity.lines() if line.startswith("step")]
    assert len(rows) <= 2 * 13
    assert any(line.split()[1] == "49" for line in rows)
