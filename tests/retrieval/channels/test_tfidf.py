import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels.table import SparseRows
from recsys_ray.retrieval.channels.tfidf import TfIdf, vectorise, words

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c"],
        "_text": ["Red red SHOE", "blue shoe", None],
        "colour": [["deep red"], ["blue"], []],
        "brand": ["acme", None, "acme"],
    }
)
FIELDS = Fields(categorical=("colour", "brand"))


def dense(tfidf: TfIdf) -> dict[str, np.ndarray]:
    matrix = tfidf.items.matrix().toarray()
    return {term: matrix[:, row] for term, row in tfidf.term_rows.items()}


def test_weights_follow_the_formula() -> None:
    tfidf = vectorise(ITEMS, FIELDS, attribute_words=False, max_share=1.0)
    assert set(tfidf.terms) == {"red", "shoe", "blue", "colour=deep red", "colour=blue", "brand=acme"}
    rare, common = math.log(4 / 2) + 1, math.log(4 / 3) + 1
    weights = {"red": (1 + math.log(2)) * rare, "shoe": common, "colour=deep red": rare, "brand=acme": common}
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    found = dense(tfidf)
    assert {term: found[term][0] for term in weights} == pytest.approx({t: w / norm for t, w in weights.items()})
    assert found["brand=acme"][2] == pytest.approx(1.0)


def test_words_of_attributes_and_common_terms_are_settings() -> None:
    terms = set(vectorise(ITEMS, FIELDS, attribute_words=True, max_share=0.5).terms)
    assert "deep" in terms
    assert "brand=acme" not in terms


def test_texts_live_in_the_same_space() -> None:
    tfidf = vectorise(ITEMS, FIELDS, attribute_words=True, max_share=1.0)
    scores = tfidf.postings.scores(tfidf.of_texts(["red SHOE!", None, "unknown words", "deep"]))
    assert scores[0].argmax() == 0
    assert not scores[1].any()
    assert not scores[2].any()
    assert (scores[3] > 0).tolist() == [True, False, False]


def test_an_items_own_vector_finds_itself_with_cosine_one() -> None:
    tfidf = vectorise(ITEMS, FIELDS, attribute_words=True, max_share=1.0)
    rows = SparseRows(Ragged.of([[0], [1, 2]]), np.array([1.0, 0.5, 1.0], np.float32))
    scores = tfidf.postings.scores(tfidf.of_items(rows))
    vectors = tfidf.items.matrix().toarray()
    np.testing.assert_allclose(scores[0], vectors @ vectors[0], atol=1e-6)
    np.testing.assert_allclose(scores[1], vectors @ (0.5 * vectors[1] + vectors[2]), atol=1e-6)


def test_words_of_any_script() -> None:
    assert words("Café / Ünïcode, 電影 2x") == ["café", "ünïcode", "電影", "2x"]


def test_a_catalogue_without_any_content() -> None:
    tfidf = vectorise(pa.table({"item_id": ["a", "b"]}), Fields(), attribute_words=True, max_share=1.0)
    assert not tfidf.postings.scores(tfidf.of_texts(["anything"])).any()


def test_a_broken_vocabulary_is_refused(tmp_path: Path) -> None:
    vectorise(ITEMS, FIELDS, attribute_words=True, max_share=1.0).save(tmp_path)
    (tmp_path / "terms.json").write_text("[")
    with pytest.raises(ArtifactError, match="cannot be read"):
        TfIdf.load(tmp_path)


def test_a_catalogue_without_words_has_no_terms() -> None:
    tfidf = vectorise(ITEMS.select(["item_id"]), Fields(), attribute_words=True, max_share=1.0)
    assert (tfidf.terms, tfidf.num_items) == ((), 3)
    assert tfidf.of_texts(["red"]).columns.lengths.tolist() == [0]
