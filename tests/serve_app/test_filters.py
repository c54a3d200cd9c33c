"""The example of docs/filters.md, asked over HTTP, and the language in the OpenAPI document."""

import json
import re
from pathlib import Path
from typing import Any

from serve_app.filters import path_of

DOCS = Path(__file__).parents[2] / "docs" / "filters.md"


def test_the_documented_example_is_answered(client: Any) -> None:
    body = re.search(r"POST /v1/recommend\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert body is not None
    answer = client.post("/v1/recommend", {**json.loads(body[1]), "fields": ["category", "price", "tags"]})
    assert answer.status_code == 200, answer.text
    shown = [item["fields"] for item in answer.json()["items"]]
    assert shown
    assert all(one["category"] in ("ocean", "city") and one["price"] <= 40 for one in shown)
    assert all("red" not in (one["tags"] or ()) for one in shown)


def test_every_row_of_the_table_is_understood(client: Any) -> None:
    leaf = '{"op": "equals", "field": "category", "value": "ocean"}'
    rows = re.findall(r"^\| `(\{.*?\})` \|", DOCS.read_text(), re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        text = row.replace("[FILTER, …]", f"[{leaf}]").replace("FILTER", leaf).replace('"brand"', '"category"')
        answer = client.post("/v1/recommend", {"history": ["i1"], "filters": json.loads(text)})
        assert answer.status_code == 200, answer.text


def test_the_openapi_document_tells_conditions_apart_by_op(client: Any) -> None:
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("RecommendRequest", "SearchRequest", "SimilarRequest"):
        union = schemas[name]["properties"]["filters"]["anyOf"][0]
        assert set(union["discriminator"]["mapping"]) == {"equals", "in", "range", "not", "all", "any"}


def test_the_path_is_that_of_the_json() -> None:
    assert path_of(("filters", "all", "of", 1, "equals", "value", "str")) == "filters.of.1.value"
