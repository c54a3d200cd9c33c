"""The work of `/v1/recommend` written by hand for one release: plain ASGI under uvicorn, FAISS, NumPy, SciPy, json.

    python benchmarks/by_hand.py RELEASE PORT

What an engineer writes for `serving_release.py` in an afternoon: the same vectors, tables and query encoder, the same
arithmetic of its three channels, reciprocal ranks, a filter by equality. No validation, no deadlines, no circuits, no
live state, nothing of recsys_ray but its reader of the release's arrays.
"""

import json
import sys
from typing import Any

import faiss
import numpy as np
import scipy.sparse as sp
import uvicorn

from recsys_ray.retrieval.channels.tfidf import words
from recsys_ray.retrieval.release import load_release
from recsys_ray.retrieval.text_backends import text_loader

DEPTH, RRF_K = 200, 60.0
_HEADERS = [(b"content-type", b"application/json")]


class ByHand:
    """One release in arrays."""

    def __init__(self, path: str) -> None:
        release = load_release(path)
        channels: Any = release.retriever.channels
        self.encoder = text_loader(release.artifact, "onnx-int8")()
        self.ids, self.titles = release.item_ids.ids, release.titles
        self.rows = {item_id: row for row, item_id in enumerate(self.ids)}
        self.columns = {name: np.array(release.items[name].to_pylist(), object) for name in release.items.column_names}
        self.masks: dict[str, Any] = {}
        self.vectors = np.ascontiguousarray(channels["nearest"].index.vectors)
        self.index = faiss.IndexFlatIP(self.vectors.shape[1])
        self.index.add(self.vectors)
        content = channels["content"]
        self.table = sp.csr_matrix(channels["co_visitation"].table.matrix())
        self.items, self.postings = content.tfidf.items.matrix(), content.tfidf.postings.matrix()
        self.terms, self.idf, self.prior = content.tfidf.term_rows, content.tfidf.idf, content.prior
        self.decays = (0.8, channels["co_visitation"].config.decay, content.config.decay)

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The k best items."""
        history = [self.rows[item_id] for item_id in body["history"]]
        text = body.get("text")
        mask = self.mask(body.get("filters"), history)
        lists = (self.nearest(history, text, mask), self.together(history, mask), self.content(history, text, mask))
        scores: dict[int, float] = {}
        for found in lists:
            for rank, row in enumerate(found.tolist()):
                scores[row] = scores.get(row, 0.0) + 1 / (RRF_K + rank + 1)
        best = sorted(scores, key=lambda row: -scores[row])[: body["k"]]
        return {"items": [{"item_id": self.ids[r], "title": self.titles[r], "score": scores[r]} for r in best]}

    def mask(self, asked: dict[str, Any] | None, history: list[int]) -> Any:
        """(N,) what may come back."""
        key = json.dumps(asked)
        if key not in self.masks:
            everything = np.ones(len(self.ids), bool)
            self.masks[key] = everything if asked is None else self.columns[asked["field"]] == asked["value"]
        mask = self.masks[key].copy()
        mask[history] = False
        return mask

    def nearest(self, history: list[int], text: str | None, mask: Any) -> Any:
        """By vectors of texts."""
        query = unit(self.weights(history, 0) @ self.vectors[history])
        if text:
            query = unit(query + self.encoder.encode([text], 1)[0])
        params = faiss.SearchParameters(sel=faiss.IDSelectorBatch(np.flatnonzero(mask)))
        rows = self.index.search(query[None].astype(np.float32), DEPTH, params=params)[1][0]
        return rows[rows >= 0]

    def together(self, history: list[int], mask: Any) -> Any:
        """By co-visitation."""
        return best((self.weights(history, 1) @ self.table[history]) * mask)

    def content(self, history: list[int], text: str | None, mask: Any) -> Any:
        """By words."""
        asked = sp.csr_matrix(self.weights(history, 2)[None]) @ self.items[history]
        known: dict[int, int] = {}
        for word in words(text or ""):
            if word in self.terms:
                known[self.terms[word]] = known.get(self.terms[word], 0) + 1
        if known:
            columns = np.array(list(known))
            values = (1 + np.log(np.array(list(known.values())))) * self.idf[columns]
            values /= np.linalg.norm(values)
            asked = asked + sp.csr_matrix((values, columns, [0, len(columns)]), asked.shape)
        return best(np.asarray((asked @ self.postings).todense())[0] * self.prior * mask)

    def weights(self, history: list[int], which: int) -> Any:
        """What each step counts."""
        return self.decays[which] ** np.arange(len(history) - 1, -1, -1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """The ASGI application."""
        if scope["type"] != "http":
            return
        raw = b""
        while scope["method"] == "POST":
            message = await receive()
            raw += message["body"]
            if not message.get("more_body"):
                break
        content = json.dumps(self.answer(json.loads(raw)) if raw else {}).encode()
        headers = [*_HEADERS, (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})


def best(scores: Any) -> Any:
    """Rows of the largest positive scores, falling."""
    scores = np.asarray(scores).ravel()
    top = np.argpartition(-scores, min(DEPTH, len(scores) - 1))[:DEPTH]
    top = top[np.argsort(-scores[top], kind="stable")]
    return top[scores[top] > 0]


def unit(vector: Any) -> Any:
    """At unit length."""
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


if __name__ == "__main__":
    faiss.omp_set_num_threads(1)
    uvicorn.run(ByHand(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", lifespan="off")
