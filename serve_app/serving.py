"""A release together with the stages that answer with it: what one answer is made from, whole."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.retrieval.fusion import Fused
from recsys_ray.retrieval.release import Question
from serve_app.deadline import Deadline
from serve_app.engine import AllChannelsFailed, DeadlinePassed, Engine, Trace
from serve_app.live import LiveRelease


@dataclass(frozen=True, eq=False)
class Serving:
    """Handed from step to step of an answer; it is let go when the last answer that began with it has ended.

    Attributes:
        live: The release, as of the newest change of its items.
        engine: Its stages, in this process or across.
    """

    live: LiveRelease
    engine: Engine

    @property
    def id(self) -> str:
        """The release's id."""
        return self.live.current.id

    @property
    def path(self) -> Path:
        """The release's directory."""
        return self.live.current.artifact.path

    async def candidates(self, question: Question, k: int, deadline: Deadline, trace: Trace) -> Fused:
        """The k best candidates; raises as `Engine.candidates`."""
        return await self.engine.candidates(question, self.live.current.fusion_for(question), k, deadline, trace)

    async def warm_up(self, within_s: float) -> None:
        """Ask every stage with a history and a text, so that what loads at first use is loaded.

        Raises:
            NotWarm: Naming the stages that have not answered.
        """
        release = self.live.current
        question = release.question(release.item_ids.externals([0]), text="warm up")
        with contextlib.suppress(DeadlinePassed, AllChannelsFailed):  # the stages say which of them are missing
            await self.candidates(question, 1, Deadline(within_s), Trace())
        if self.engine.not_ready:
            raise NotWarm(f"Still waiting for: {', '.join(self.engine.not_ready)}.")


class NotWarm(Exception):
    """Not all stages have answered yet."""
