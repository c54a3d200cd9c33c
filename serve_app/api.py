"""The HTTP bodies: what each route takes and gives. Unknown keys and values of the wrong type are errors."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, StringConstraints, model_validator

from recsys_ray.online.seen import MAX_DAYS, ExcludeSeen, Seen
from serve_app.config import Limits
from serve_app.filters import AnyFilter

ExternalId = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Kind = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class Request(BaseModel):
    """What every question may carry.

    Attributes:
        k: How many items to answer with.
        filters: What items may come back, by their catalogue fields, e.g. ``{"op": "equals", "field": "brand", "value":
            "acme"}``; docs/filters.md has the language.
        deadline_ms: Answer within this time or say 408; channels that would be late are left out. By default that of
            the header `X-Deadline-Ms`, else the application's.
        explain: Add the rank and score that each channel gave an item.
        fields: Catalogue fields to return with each item.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    k: int = Field(20, ge=1)
    filters: AnyFilter | None = None
    deadline_ms: int | None = Field(None, ge=1)
    explain: bool = False
    fields: list[str] = Field(default_factory=list, max_length=64)


class SeenEvents(BaseModel):
    """The events whose items count as seen: those that fit all that is given, one of the two at least.

    Attributes:
        within_days: Events of so many days up to now.
        kinds: Events of these kinds, e.g. ``["purchase"]``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, json_schema_extra={"minProperties": 1}
    )

    within_days: float | None = Field(None, gt=0, le=MAX_DAYS)
    kinds: list[Kind] | None = Field(None, min_length=1, max_length=64)

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.within_days is None and self.kinds is None:
            raise ValueError("give within_days, kinds or both; or true or false instead")
        return self

    def plain(self) -> Seen:
        """Without pydantic."""
        return Seen.within(self.within_days, self.kinds)


class RecommendRequest(Request):
    """Recommend to a user, to a history, for a text, or for a history and a text together.

    Attributes:
        user_id: A user of the release, or one whose events came since (`/v1/events`); 404 when nothing is known.
        history: Item ids the user met, oldest first, in place of `user_id`. Ids that the release does not know are
            ignored and reported in `unknown_items`. An empty history is answered with popular items and `cold: true`.
        text: What the user is after, in words.
        exclude_seen: Whether items of the history are left out. With a `user_id` also which: ``{"within_days": 30,
            "kinds": ["purchase"]}`` leaves out what was bought in the last 30 days, and nothing else.
    """

    user_id: ExternalId | None = None
    history: list[ExternalId] | None = None
    text: Text | None = None
    exclude_seen: bool | SeenEvents = True

    def exclusion(self) -> ExcludeSeen:
        """What is left out, without pydantic."""
        return self.exclude_seen if isinstance(self.exclude_seen, bool) else self.exclude_seen.plain()


class SimilarRequest(Request):
    """Items like one item."""

    item_id: ExternalId


class SearchRequest(Request):
    """Items for a text."""

    text: Text


class EventIn(BaseModel):
    """One interaction.

    Attributes:
        user_id: Any; a user need not be known before.
        item_id: Any; an item that is not known (yet) is kept, and ignored for as long as it is unknown.
        timestamp: Seconds since 1970, or ISO 8601 (UTC where it names no zone); by default now. An event that is sent
            again with the same timestamp counts once.
        kind: View, click, purchase, …
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    user_id: ExternalId
    item_id: ExternalId
    timestamp: int | float | str | None = None
    kind: Kind = "interaction"


class EventsRequest(BaseModel):
    """Events to write into the users' histories; all of them are written, or none."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    events: list[EventIn] = Field(min_length=1)


class ItemRequest(BaseModel):
    """An item to add, or to put in the place of the one that has its id.

    Attributes:
        fields: Catalogue field to value; what is not given is null. Dates are ISO 8601 text.
        picture: JPEG, PNG, WEBP, GIF or BMP in base64, where the release reads pictures.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    fields: dict[str, JsonValue] = Field(default_factory=dict, max_length=1000)
    picture: str | None = None


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
        degraded: Channels (or "encoder", or "histories": what came of the user since the release) that were late or
            failed and are left out of this answer; "items" where changes of the last seconds may be missing.
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


class EventsAnswer(Envelope):
    """That events were written, durably.

    Attributes:
        accepted: How many.
        exposures: How many more said only that something was shown (`data.exposures`): no part of a history, not kept.
        unknown_items: Those of their items that are not known now.
    """

    accepted: int
    exposures: int
    unknown_items: list[str]


class ChangedAnswer(Envelope):
    """That an item was put or deleted, durably.

    Attributes:
        sequence: Number of the change; a replica whose `live.sequence` in `/v1/status` is as high has it.
    """

    item_id: str
    sequence: int


class ErasedAnswer(Envelope):
    """That a user was forgotten."""

    user_id: str


class LiveStatus(BaseModel):
    """How the replica that answers stands with changes of items.

    Attributes:
        replica: Its host and process.
        sequence: Of the newest change that it has.
        lag_s: Seconds since it last made sure that it has all of them.
        max_lag_s: From where on it answers 503; null: never.
    """

    replica: str
    sequence: int
    lag_s: float
    max_lag_s: float | None


class TextEncoderStatus(BaseModel):
    """What encodes the texts of questions.

    Attributes:
        backend: "onnx-int8", "onnx" or "torch"; null where the release reads no texts.
        measured_ms: Milliseconds a text of each backend, as measured when the application started.
        fidelity: How near its vectors are to the full model's; empty for the model itself.
    """

    backend: str | None
    measured_ms: dict[str, float]
    fidelity: dict[str, float]


class RecallStatus(BaseModel):
    """What the replica that answers measured of its indexes on live questions, in idle time.

    Attributes:
        share: The share of the questions that is measured; 0: none.
        recall: Channel to its recall@k by what the questions' filters allow; empty before anything was measured.
        rebuild_wanted: Whether an index fell below its target.
        reason: Which, and by how much.
    """

    share: float
    recall: dict[str, dict[str, float]]
    rebuild_wanted: bool
    reason: str | None


class RefusedRelease(BaseModel):
    """The active release that does not take over; its id is empty where the pointer cannot be read."""

    release: str
    reason: str


class FollowingStatus(BaseModel):
    """How the replica that answers stands with the active release.

    Attributes:
        follows: Whether it follows at all; false when one release was given.
        loading: The release that is being checked and loaded.
        refused: The active release, where it does not take over, and why.
        swaps: How often another release took over since the start.
    """

    follows: bool
    loading: str | None
    refused: RefusedRelease | None
    swaps: int


class StatusAnswer(Envelope):
    """What is being served.

    Attributes:
        channels: Names of the channels.
        fallback: The channel that answers when no other does; null: none.
        circuits: Stage to "closed" (all is well), "open" (failed too often, left out) or "half_open" (being tried).
        spaces: Ids of the vector spaces that questions are encoded in.
        fields: Catalogue fields that can be shown and filtered by.
        counts: Items, and users with a history.
        text_encoder: What encodes the texts of questions.
        live: The replica that answers.
        recall: How well its indexes find what they should.
        following: What it does about the active release.
    """

    topology: str
    channels: list[str]
    fallback: str | None
    circuits: dict[str, str]
    spaces: list[str]
    fields: list[str]
    counts: dict[str, int]
    text_encoder: TextEncoderStatus
    live: LiveStatus
    recall: RecallStatus
    following: FollowingStatus


class HealthAnswer(Envelope):
    """That the process lives, or is ready."""

    status: str


def over_limits(body: BaseModel, limits: Limits) -> list[dict[str, str]]:
    """The fields of a well-formed body that go beyond the configured limits or do not fit together."""
    wrong: list[dict[str, str]] = []

    def check(field: str, came: int, most: int, unit: str) -> None:
        if came > most:
            wrong.append({"field": field, "detail": f"got {came}{unit}; at most {most}{unit} are allowed"})

    if isinstance(body, EventsRequest):
        check("events", len(body.events), limits.max_events, " events")
    if isinstance(body, Request):
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
