"""Keys that routes can be closed with: read from the environment or a file, never shown, compared in constant time."""

import hashlib
import hmac
import os
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from recsys_ray.core.errors import ConfigError
from serve_app.problems import Problem, documented

_ENV, _FILE = "env:", "file:"
_MIN_CHARS = 16


class Key:
    """A secret that a request must bring as ``Authorization: Bearer KEY``. It keeps a digest, not the secret."""

    def __init__(self, secret: str) -> None:
        self._digest = _digest(secret)

    def require(self, authorization: str | None) -> None:
        """Check a request's header.

        Raises:
            Problem: 401 there is none, or another key.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip()), self._digest):
            detail = "This route needs a key: Authorization: Bearer KEY."
            raise Problem(401, detail, headers={"WWW-Authenticate": 'Bearer realm="recsys_ray"'})


def read_key(setting: str, where: str | None) -> Key | None:
    """The key that a setting points to.

    Args:
        setting: Its dotted path, for errors.
        where: ``env:NAME`` or ``file:PATH``; None: there is no key.

    Raises:
        ConfigError: When nothing is there, or it is too short to be a secret; the key itself is never in the text.
    """
    if where is None:
        return None
    if where.startswith(_ENV):
        secret = os.environ.get(where.removeprefix(_ENV))
    elif where.startswith(_FILE):
        try:
            secret = Path(where.removeprefix(_FILE)).read_text()
        except (OSError, UnicodeDecodeError):
            secret = None
    else:
        raise ConfigError(setting, "something else", "env:NAME or file:PATH", "The key itself is not a setting.")
    if secret is None or len(secret.strip()) < _MIN_CHARS:
        came = "nothing" if secret is None else f"{len(secret.strip())} characters"
        hint = "Every process of the gateway must see it; openssl rand -hex 32 makes a key."
        raise ConfigError(setting, f"{where}, which holds {came}", f"a key of {_MIN_CHARS} characters or more", hint)
    return Key(secret.strip())


def guarded(key: Key | None) -> tuple[list[Any], dict[int | str, dict[str, Any]]]:
    """A route's `dependencies` and further `responses` where it is closed with a key; empty where there is no key."""
    if key is None:
        return [], {}
    scheme = HTTPBearer(auto_error=False, description="The key that the application was started with.")

    def require(request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(scheme)]) -> None:
        key.require(request.headers.get("authorization"))

    return [Depends(require)], documented(401)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
