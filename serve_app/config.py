"""The settings of the serving application: which release, in which topology, within which limits."""

from typing import Annotated, Literal

from pydantic import Field

from recsys_ray.core.config import Config
from recsys_ray.retrieval.text_backends import TextEncoderConfig


class Limits(Config):
    """What one request may ask for and what one gateway replica takes on at a time.

    Attributes:
        max_body_bytes: Longer bodies are refused with 413, before they are read or parsed.
        max_k: The most items one answer may hold.
        max_history: The most items a request's history may name.
        max_text_chars: The longest query text.
        deadline_ms: The deadline of requests that set none.
        max_deadline_ms: The longest deadline a request may set.
        max_in_flight: Requests a gateway replica works on at a time; more are answered 429 at once. It takes on fewer
            where it would not work off as many within a quarter of `deadline_ms`.
        max_events: The most events one request may bring.
        retry_after_s: What a refused client is told to wait.
    """

    max_body_bytes: int = Field(256 * 1024, ge=1024)
    max_k: int = Field(500, ge=1)
    max_history: int = Field(1000, ge=1)
    max_text_chars: int = Field(2000, ge=1)
    deadline_ms: int = Field(2000, ge=1)
    max_deadline_ms: int = Field(30_000, ge=1)
    max_in_flight: int = Field(64, ge=1)
    max_events: int = Field(1000, ge=1)
    retry_after_s: int = Field(1, ge=1)


class Breaker(Config):
    """When a stage (encoder, channel, histories) that keeps failing is left alone.

    Attributes:
        failures: So many failures in a row open its circuit: it is left out at once and named in `degraded`.
        pause_s: After so long one request tries it again; each try that fails doubles the pause.
        max_pause_s: It grows no longer than this.
        min_timeout_ms: A stage that was given less time than this and was late says nothing: the client was in a hurry.
    """

    failures: int = Field(5, ge=1)
    pause_s: float = Field(1.0, gt=0)
    max_pause_s: float = Field(30.0, gt=0)
    min_timeout_ms: int = Field(100, ge=1)


class Live(Config):
    """State that changes while serving: histories of users, and items that are put or deleted.

    Attributes:
        store: Where it is kept: "sqlite" in `live/live.sqlite` beside the releases, which replicas of one node share;
            ``sqlite:PATH`` elsewhere; ``redis://HOST:PORT/DATABASE`` for several nodes; null for none, and then
            events and changes of items are refused.
        max_history: The newest so many events of a user are kept.
        poll_s: How often a replica asks for changes of items.
        max_lag_s: A replica that could not make sure for this long that it has all changes refuses to answer; null
            never refuses. From one second on its answers name "items" in `degraded`.
        compact_at: From this many changed vectors on, an index is built anew in the background.
    """

    store: str | None = "sqlite"
    max_history: int = Field(1000, ge=1)
    poll_s: float = Field(0.1, gt=0, le=0.5)
    max_lag_s: float | None = Field(10.0, ge=1)
    compact_at: int = Field(10_000, ge=1)


class RecallCheck(Config):
    """How the recall of the indexes is watched while they serve; docs/live.md.

    Attributes:
        share: So many of the questions are asked again, exactly, while no request is in flight; 0 measures nothing.
        target: The recall that must hold; null is what each index was chosen by (`index.target_recall`).
        window: The last so many questions of a kind are judged.
        queue: So many may wait to be measured; more are dropped.
        core_share: The most of one core that measuring takes, on average.
    """

    share: float = Field(0.01, ge=0, le=1)
    target: float | None = Field(None, gt=0, le=1)
    window: int = Field(500, ge=30)
    queue: int = Field(32, ge=1)
    core_share: float = Field(0.05, gt=0, le=1)


class Scale(Config):
    """How many replicas a deployment has and what each of them reserves.

    Attributes:
        replicas: Number of replicas.
        num_cpus: Logical CPUs a replica reserves; the threads it computes with are always one.
        num_gpus: GPUs a replica reserves.
        max_ongoing_requests: Requests a replica takes at a time; Ray Serve queues what comes beyond, unseen by us. Null
            is 128, and of the gateway 16 times `limits.max_in_flight`: there it must be above that limit, since what
            waits in Ray Serve's queue cannot be refused in time.
        max_queued_requests: Requests that may wait there; more are refused by Ray Serve, in plain text. Null: as many.
    """

    replicas: int = Field(1, ge=1)
    num_cpus: float = Field(0.5, ge=0)
    num_gpus: float = Field(0.0, ge=0)
    max_ongoing_requests: int | None = Field(None, ge=1)
    max_queued_requests: int | None = Field(None, ge=1)


class Keys(Config):
    """What callers must bring as ``Authorization: Bearer KEY``. Each is ``env:NAME`` or ``file:PATH``, never the key.

    Attributes:
        admin: For the routes under /admin; without it there are none.
        write: For the routes that write events, users and items; without it anybody may.
    """

    admin: str | None = None
    write: str | None = None


class ServeConfig(Config):
    """The serving application.

    Attributes:
        release: What to serve: the storage of a run or a folder of releases, whose active release is followed; or the
            directory of one release, which is served for good. Every node that runs a replica must see it.
        follow: False serves what is active at the start for good; by default a storage is followed.
        topology: "collapsed" runs all stages inside the gateway's replicas (lowest latency); "composed" runs the
            encoder and each channel as deployments of their own, scaled on their own. The answers are equal.
        limits: What a request may ask for.
        breaker: When a stage that keeps failing is left out.
        fallback: The channel that the gateway asks of its own copy when it did not answer in time, so that there is an
            answer when no other channel gives one: one that reads nothing of the question, like popularity. "auto" is
            the release's first such channel, if any; null: none.
        live: Histories and changes of items.
        recall: How the recall of the indexes is watched.
        text_encoder: What encodes the texts of questions.
        keys: What callers must bring.
        gateway: Scale of the HTTP ingress.
        encoder: Scale of the query encoder (composed).
        channel: Scale of each channel (composed).
        channels: Scale of single channels by name, in place of `channel` (composed).
        shards: Nearest channel to how many shards its items are split over (composed). Each is a deployment of that
            channel's scale and holds its own vectors alone, which it searches exactly; see docs/serving.md.
    """

    release: str
    follow: bool | None = None
    topology: Literal["collapsed", "composed"] = "collapsed"
    limits: Limits = Limits()
    breaker: Breaker = Breaker()
    fallback: str | None = "auto"
    live: Live = Live()
    recall: RecallCheck = RecallCheck()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    keys: Keys = Keys()
    gateway: Scale = Scale()
    encoder: Scale = Scale()
    channel: Scale = Scale(num_cpus=0.25)
    channels: dict[str, Scale] = Field(default_factory=dict)
    shards: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)

    @property
    def sharded(self) -> frozenset[str]:
        """The channels that are in more than one shard."""
        return frozenset(name for name, count in self.shards.items() if count > 1)
