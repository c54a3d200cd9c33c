"""Keys come from the environment or a file, and never show up anywhere."""

import traceback
from pathlib import Path

import pytest

from recsys_ray.core.errors import ConfigError
from serve_app.keys import read_key
from serve_app.problems import Problem

SECRET = "0123456789abcdef-secret"


def test_a_key_opens_with_itself_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("THE_KEY", SECRET)
    (tmp_path / "key").write_text(SECRET + "\n")
    for where in ("env:THE_KEY", f"file:{tmp_path / 'key'}"):
        key = read_key("keys.admin", where)
        assert key is not None
        key.require(f"Bearer {SECRET}")
        key.require(f"bearer  {SECRET} ")
        assert SECRET not in repr(vars(key))
        for wrong in (None, "", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer", "Bearer \xff"):
            with pytest.raises(Problem) as caught:
                key.require(wrong)
            assert caught.value.status == 401
            assert caught.value.headers["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize("where", ["env:NOT_SET", "env:TOO_SHORT", "file:/nowhere/at/all", SECRET])
def test_what_is_no_key_is_named_without_being_shown(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    monkeypatch.setenv("TOO_SHORT", "hunter2")
    with pytest.raises(ConfigError, match=r"keys\.write") as caught:
        read_key("keys.write", where)
    said = "".join(traceback.format_exception(caught.value))
    assert "hunter2" not in said
    assert f"got {SECRET!r}" not in str(caught.value)


def test_no_setting_is_no_key() -> None:
    assert read_key("keys.admin", None) is None
