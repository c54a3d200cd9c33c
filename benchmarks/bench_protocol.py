"""Protocol and metrics against an independent computation: co-visitation, leave-one-out, full ranking.

    python benchmarks/bench_protocol.py [DATASET_DIR ...]

Each folder holds interactions.parquet (user_id, item_id, timestamp). The peer counts and ranks densely with numpy, in a
few lines that share no code with the project, in the same run; both must agree. Without arguments: ml1m and
amazon_beauty below $RECSYS_RAY_DATA, where they are there.
"""

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import scipy.sparse as sp

from recsys_ray import override, presets, run

DATA = Path(os.environ.get("RECSYS_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))
TOLERANCE = 1e-3
TABLE_ONLY = {
    "channels": {"co_visitation": {"kind": "co_visitation", "search": {}}},
    "model.text": None,
    "model.image": None,
    "evaluation.bootstrap_samples": 100,
}


def ours(dataset: Path, storage: str) -> dict[str, float]:
    """Recall and NDCG of the co_visitation channel by the pipeline, on its default settings."""
    settings = {**TABLE_ONLY, "data.events": str(dataset / "interactions.parquet"), "storage": storage}
    return run(override(presets.cpu(), settings), until="evaluate").require_report()["metrics"]["co_visitation"]


def peer(dataset: Path) -> dict[str, float]:
    """The same by hand: window 10, weight 1 / gap, 0.3 of the transpose, cosine, history decayed by 0.6 a step."""
    table = pq.read_table(dataset / "interactions.parquet", columns=["user_id", "item_id", "timestamp"])
    frame = table.to_pandas().sort_values(["user_id", "timestamp"], kind="stable")
    frame["item"] = frame["item_id"].astype("category").cat.codes
    count = int(frame["item"].max()) + 1
    histories = [group.to_numpy() for _, group in frame.groupby("user_id")["item"]]
    fitted = [h[:-2] if len(h) >= 3 else h for h in histories]
    asked = [h for h in histories if len(h) >= 3]
    pairs = [(h[a], h[b], 1 / (b - a)) for h in fitted for b in range(len(h)) for a in range(max(0, b - 10), b)]
    source, target, weight = (np.array(column) for column in zip(*pairs, strict=True))
    counts = sp.csr_matrix((weight, (source, target)), (count, count))
    users = np.zeros(count)
    for history in fitted:
        users[np.unique(history)] += 1
    scale = sp.diags(1 / np.sqrt(np.maximum(users, 1)))
    items = (scale @ (counts + 0.3 * counts.T) @ scale).tocsr()
    ranks = np.array([rank(items, history) for history in asked])
    return {"recall@10": float((ranks < 10).mean()), "ndcg@10": float(((ranks < 10) / np.log2(ranks + 2)).mean())}


def rank(items: sp.csr_matrix, history: np.ndarray) -> float:
    """Mean rank among ties of the last event, asked with all before it."""
    known, wanted = history[:-1], history[-1]
    scores = (0.6 ** np.arange(len(known) - 1, -1, -1.0)) @ items[known]
    scores[known] = -np.inf
    return float((scores > scores[wanted]).sum() + ((scores == scores[wanted]).sum() - 1) / 2)


def main() -> int:
    """Print peer, ours and ratio for every data set; the last line is `met N of M`."""
    folders = [Path(name) for name in sys.argv[1:]] or [DATA / name for name in ("amazon_beauty", "ml1m")]
    folders = [folder for folder in folders if (folder / "interactions.parquet").is_file()]
    met = total = 0
    for folder in folders:
        with tempfile.TemporaryDirectory() as storage:
            theirs, mine = peer(folder), ours(folder, storage)
        for metric, value in theirs.items():
            total, met = total + 1, met + (abs(mine[metric] - value) <= TOLERANCE)
            print(f"{folder.name} {metric}: peer {value:.4f} ours {mine[metric]:.4f} ratio {mine[metric] / value:.4f}")
    print(f"met {met} of {total}" if total else f"no data: give a folder, or set RECSYS_RAY_DATA ({DATA} has none)")
    return int(met < total)


if __name__ == "__main__":
    raise SystemExit(main())
