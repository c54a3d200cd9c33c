from pathlib import Path

import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.demo import settings_of_folder


def test_a_folder_of_ones_own_is_read_by_the_names_of_its_files(tmp_path: Path) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    for name in ("items.parquet", "events.parquet"):
        (shop / name).touch()
    assert settings_of_folder(shop) == {"name": "shop", "data.items": str(shop), "data.events": str(shop)}
    (shop / "users.parquet").touch()
    assert settings_of_folder(shop)["data.users"] == str(shop)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data: got .*none.*items\.\*"):
        settings_of_folder(tmp_path / "none")
