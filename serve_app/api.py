"""The HTTP bodies: what each route takes and gives. Unknown keys and values of the wrong type are errors."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from serve_app.config import Limits

ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Scalar = str | int | float | bool


class Request(BaseModel):
    """What every question may carry.

    Attributes:
        k: How many items to answer with.
        filters: Catalogue field to what it must be: a value, ``{"in": [a, b]}`` for one of several, or a range
            ``{"min": 1990, "max": 1999}`` with both ends in it. All of them must hold.
        deadline_ms: Answer within this time or say 408; channels that would be late are left out.
        explain: Add the rank and score that each channel gave an item.
        fields: Catalogue fields to return with each item.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    k: int = Field(20, ge=1)
    filters: dict[str, Scalar | dict[Literal["in", "min", "max"], Scalar | list[Scalar]]] = Field(
        default_factory=dict, max_length=32
    )
    deadline_ms: int | None = Field(None, ge=1)
    explain: bool = False
    fields: list[str] = Field(default_factory=list, max_length=64)


class RecommendRequest(Request):
    """Recommend to a user, to a history, for a text, or for a history and a text together.

    Attributes:
        user_id: A user whose history the release knows; 404 when it does not know the user.
        history: Item ids the user met, oldest first, in place of `user_id`. Ids that the release does not know are
            ignored and reported in `unknown_items`. An empty history is answered with popular items and `cold: true`.
        text: What the user is after, in words.
        exclude_seen: Whether items of the history are left out.
    """

    user_id: ExternalId | None = None
    history: list[ExternalId] | None = None
    text: Text | None = None
    exclude_seen: bool = True


class SimilarRequest(Request):
    """Items like one item."""

    item_id: ExternalId


class SearchRequest(Request):
    """Items for a text."""

    text: Text


class Vote(BaseModel):
    """What one channel said of an item.

    Attributes:
        rank: Place in the channel's own list, from 1.
        score: The channel's own score; its scale is the channel's.
        share: What the channel adds to the item's fused score.
    """

    rank: int
    score: float
    share: float


class Item(BaseModel):
    """One item of an answer, best first.

    Attributes:
        score: Comparable within one answer only.
        channels: The channels that proposed it and its rank there, from 1; the best rank first.
        fields: The catalogue fields asked for.
        explain: Channel name to its vote, when asked for.
    """

    item_id: str
    title: str | None
    score: float
    channels: dict[str, int]
    fields: dict[str, Any] | None = None
    explain: dict[str, Vote] | None = None


class Envelope(BaseModel):
    """What every answer carries.

    Attributes:
        release: Id of the release that answered.
        request_id: The `X-Request-ID` sent, or a new one.
        degraded: Channels (or "encoder") that were late or failed and are left out of this answer.
        timings_ms: Stage or channel to its milliseconds.
    """

    release: str
    request_id: str
    degraded: list[str]
    timings_ms: dict[str, float]


class ItemsAnswer(Envelope):
    """Items, best first.

    Attributes:
        items: Fewer than k only when fewer allowed items exist.
        cold: Whether nothing was known of the user, so that popular items were given.
        unknown_items: Ids of the history that the release does not know.
    """

    items: list[Item]
    cold: bool = False
    unknown_items: list[str] = []


class ItemAnswer(Envelope):
    """One catalogue item with its fields."""

    item_id: str
    title: str | None
    fields: dict[str, Any]


class StatusAnswer(Envelope):
    """What is being served.

    Attributes:
        channels: Names of the channels.
        spaces: Ids of the vector spaces that questions are encoded in.
        fields: Catalogue fields that can be shown and filtered by.
        counts: Items, and users with a history.
    """

    topology: str
    channels: list[str]
    spaces: list[str]
    fields: list[str]
    counts: dict[str, int]


class HealthAnswer(Envelope):
    """That the process lives, or is ready."""

    status: str


def over_limits(body: Request, limits: Limits) -> list[dict[str, str]]:
    """The fields of a well-formed body that go beyond the configured limits or do not fit together."""
    wrong: list[dict[str, str]] = []

    def check(field: str, came: int, most: int, unit: str) -> None:
        if came > most:
            wrong.append({"field": field, "detail": f"got {came}{unit}; at most {most}{unit} are allowed"})

    check("k", body.k, limits.max_k, "")
    check("deadline_ms", body.deadline_ms or 0, limits.max_deadline_ms, " ms")
    if isinstance(body, RecommendRequest):
        check("history", len(body.history or ()), limits.max_history, " items")
        wrong += _question_missing(body)
    if isinstance(body, RecommendRequest | SearchRequest):
        check("text", len(body.text or ""), limits.max_text_chars, " characters")
    return wrong


def _question_missing(body: RecommendRequest) -> list[dict[str, str]]:
    if body.user_id is not None and body.history is not None:
        return [{"field": "history", "detail": "give either user_id or history, not both"}]
    if body.user_id is None and body.history is None and body.text is None:
        return [{"field": "user_id", "detail": "one of user_id, history and text is needed"}]
    return []
