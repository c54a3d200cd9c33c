"""Parity: losses and gradients of one worker and of several at the same global batch, by every engine.

    python benchmarks/bench_parity.py [--steps 50] [--workers 2] [--backbone FOLDER]

The peer is one worker on the plain engine; ours are `--workers` Ray Train workers on the plain engine and on DeepSpeed
with ZeRO 0 to 3, each through the same steps, in fp32 and by SGD, over a synthetic catalogue. With --backbone a text
encoder (a folder, or "package:minilm") is trained with the towers in mode "full". The target is 1e-5, relative, at each
step, for the loss and for the norm of the whole gradient. Prints both curves; the last line is `met N of M`.
"""

import argparse
import tempfile
from pathlib import Path

from recsys_ray.core.config import override, parse_assignments
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.pipeline import verify_parity
from recsys_ray.presets import PRESETS
from recsys_ray.stages.parity import ParityPlan
from recsys_ray.training.parity.curves import QUANTITIES, TITLES, TOLERANCE

TOWERS = {
    "model.dim": 32,
    "model.image": None,
    "training.batch_size": 32,
    "training.negatives": 127,
    "training.gpus": 0,
}


def main() -> int:
    """Print the curves and the targets; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backbone", help="a text encoder to train with the towers; none by default")
    parser.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="over these settings; repeat it"
    )
    arguments = parser.parse_args()
    text = None if arguments.backbone is None else {"backbone": arguments.backbone, "mode": "full", "max_tokens": 16}
    with tempfile.TemporaryDirectory() as folder:
        data = make_synthetic(Path(folder) / "raw", users=200, items=300, events_per_user=12)
        settings = {**TOWERS, "model.text": text, "data": data.model_dump(), "storage": str(Path(folder) / "storage")}
        config = override(PRESETS["cpu"](), {**settings, **parse_assignments(arguments.set)})
        parity = verify_parity(config, ParityPlan(steps=arguments.steps, workers=arguments.workers))
    print("\n".join(parity.lines()))
    met = []
    for curve in parity.many:
        for quantity in QUANTITIES:
            difference = parity.difference(curve, quantity)
            met.append(difference <= TOLERANCE)
            verdict = "met" if met[-1] else "MISSED"
            print(
                f"{verdict}: {curve.name}, {TITLES[quantity]}: {difference:.1e} from one worker, {TOLERANCE:g} wanted"
            )
    print(f"met {sum(met)} of {len(met)}")
    return int(not all(met))


if __name__ == "__main__":
    raise SystemExit(main())
