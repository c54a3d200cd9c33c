"""The admin routes: which releases there are, which one answers, and moving between them. Off without a key."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.release_pointer import is_plain
from recsys_ray.retrieval.releases import ReleaseInfo, Releases
from serve_app.api import Envelope
from serve_app.checks import check_anew
from serve_app.keys import Key, guarded
from serve_app.problems import Problem, documented

Enveloped = Callable[[Request], Mapping[str, Any]]


class ReleaseLine(BaseModel):
    """One release.

    Attributes:
        active: Whether it is the one that should answer; `/v1/status` says whether it does.
        problem: Why its manifest cannot be read; null when it can.
    """

    id: str
    created_at: str
    items: int
    fitted_on: str
    measured: dict[str, Any]
    num_bytes: int
    active: bool
    problem: str | None


class ReleasesAnswer(Envelope):
    """The releases, newest first.

    Attributes:
        active: The id of the one that should answer; null where none was ever activated.
    """

    active: str | None
    releases: list[ReleaseLine]


class ActivatedAnswer(Envelope):
    """That a release was made the active one; replicas load it beside the one that answers and then change over."""

    active: str


class VerifiedAnswer(Envelope):
    """What a check of a release found.

    Attributes:
        passed: Whether it may answer.
        reason: Why not.
    """

    id: str
    passed: bool
    reason: str | None


@dataclass(frozen=True)
class Admin:
    """What the routes work on.

    Attributes:
        releases: The releases that the replicas follow.
        key: What every request must bring.
    """

    releases: Releases
    key: Key


def admin_routes(admin: Admin, enveloped: Enveloped) -> APIRouter:
    """The routes; `enveloped` makes what every answer carries."""
    releases = admin.releases
    guard, refusals = guarded(admin.key)
    router = APIRouter(prefix="/admin", dependencies=guard)

    def answer(request: Request, document: Mapping[str, Any]) -> Response:
        return Response(json.dumps({**document, **enveloped(request)}).encode(), media_type="application/json")

    @router.get(
        "/releases", response_model=None, responses={200: {"model": ReleasesAnswer}, **documented(405), **refusals}
    )
    async def list_releases(request: Request) -> Response:
        """All releases of the storage, and which of them is active."""
        found = await asyncio.to_thread(releases.list)
        active = next((one.id for one in found if one.active), None)
        return answer(request, {"active": active, "releases": [_line(one) for one in found]})

    changed: dict[int | str, dict[str, Any]] = {200: {"model": ActivatedAnswer}, **refusals}

    @router.post(
        "/releases/{release_id}/activate",
        response_model=None,
        responses={**changed, **documented(404, 405, 409, 422)},
    )
    async def activate(release_id: str, request: Request) -> Response:
        """Check a release, and make it the active one if it passes; 409 with the reason if it does not."""
        _require_known(releases, release_id)
        await _refusable(releases.activate, release_id)
        return answer(request, {"active": release_id})

    @router.post("/rollback", response_model=None, responses={**changed, **documented(405, 409)})
    async def roll_back(request: Request) -> Response:
        """Make the release active again that was so before; 409 where there is none or it does not pass the check."""
        return answer(request, {"active": await _refusable(releases.roll_back)})

    @router.post(
        "/releases/{release_id}/verify",
        response_model=None,
        responses={200: {"model": VerifiedAnswer}, **documented(404, 405, 422), **refusals},
    )
    async def verify(release_id: str, request: Request) -> Response:
        """Hash every file of a release, load it and ask its canary, in a process of its own."""
        _require_known(releases, release_id)
        reason = None
        try:
            await asyncio.to_thread(check_anew, releases.folder / release_id)
        except ArtifactError as error:
            reason = str(error)
        return answer(request, {"id": release_id, "passed": reason is None, "reason": reason})

    return router


async def _refusable(change: Callable[..., Any], *args: str) -> Any:
    try:
        return await asyncio.to_thread(change, *args)
    except ArtifactError as error:
        raise Problem(409, str(error)) from None


def _require_known(releases: Releases, release_id: str) -> None:
    if not is_plain(release_id) or not (releases.folder / release_id).is_dir():
        raise Problem(404, f"There is no release {release_id!r}; GET /admin/releases lists them.")


def _line(info: ReleaseInfo) -> dict[str, Any]:
    values = asdict(info)
    del values["path"]
    return values
