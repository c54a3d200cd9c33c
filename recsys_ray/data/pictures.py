"""Pictures of items: found by column or by file name, decoded once, hashed."""

import os
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from recsys_ray.core import schema, validate
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say, track
from recsys_ray.data.catalogue import Catalogue
from recsys_ray.data.rejected import Rejected
from recsys_ray.data.sources import DataConfig, data_suffix, find_files

IMAGES_FOLDER = "images"
INSIDE = "artifact:"  # before the path of a picture that lies in the dataset artifact itself
PICTURES_FOLDER = "pictures_folder"  # in the summary: where the other pictures lay when the dataset was made
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass(frozen=True)
class PictureColumns:
    """(N,) the derived columns `_image` and `_image_sha256`."""

    paths: pa.Array
    hashes: pa.Array


@dataclass
class _Found:
    """Pictures that some items name: the item's row, and the file or the bytes."""

    rows: list[int] = field(default_factory=list)
    sources: list[Path | bytes] = field(default_factory=list)

    def add(self, row: int, source: Path | bytes) -> None:
        self.rows.append(row)
        self.sources.append(source)


def check_catalogue_pictures(
    catalogue: Catalogue, config: DataConfig, directory: Path, rejected: Rejected
) -> PictureColumns:
    """Decode every picture that the catalogue names. An item whose picture is bad stays, without a picture.

    Args:
        catalogue: Items.
        config: The images folder and the limits.
        directory: The dataset's directory; pictures that come as bytes are written below its `images/`.
        rejected: Takes the bad pictures; the source "images" is settled here.
    """
    found, outside = find_pictures(catalogue, config)
    folder = picture_folder(config)
    paths: list[str | None] = [None] * catalogue.table.num_rows
    hashes: list[str | None] = [None] * catalogue.table.num_rows
    bad: dict[str, list[int]] = {validate.PICTURE_OUTSIDE: outside} if outside else {}
    checks = validate.check_pictures(found.sources, config.pictures, config.picture_threads)
    shown = track(checks, "Checking pictures", len(found.rows)) if found.rows else checks
    for row, source, picture in zip(found.rows, found.sources, shown, strict=True):
        if picture.reason is not None:
            bad.setdefault(picture.reason, []).append(row)
            continue
        hashes[row] = picture.sha256
        paths[row] = _write(directory, source, picture) if isinstance(source, bytes) else _relative(source, folder)
    ids = catalogue.table.column(schema.ITEM_ID)
    for reason, rows in bad.items():
        rejected.add("images", catalogue.lines.take(pa.array(rows)).to_numpy(), reason, ids.take(pa.array(rows)))
    came = len(found.rows) + len(outside)
    if came:
        kept = came - sum(map(len, bad.values()))
        rejected.settle("images", came, kept, config.max_rejected_fraction)
    return PictureColumns(pa.array(paths, pa.string()), pa.array(hashes, pa.string()))


def picture_folder(config: DataConfig) -> Path | None:
    """What picture paths are relative to: `images`, else the folder of `items`; None where there is neither.

    Raises:
        ConfigError: When `images` is set and is no folder.
    """
    return None if config.images is None and config.items is None else _folder(config)


def find_pictures(catalogue: Catalogue, config: DataConfig) -> tuple[_Found, list[int]]:
    """The pictures of the items, and the rows whose path leads out of the images folder.

    Raises:
        ConfigError: When `images` is set and is no folder.
    """
    if catalogue.image is None:
        return _named_by_id(catalogue, config), []
    folder = _folder(config)
    column = catalogue.table.column(catalogue.image)
    found, outside = _Found(), []
    for row, value in enumerate(column.to_pylist()):
        source = value.get("bytes") or value.get("path") if isinstance(value, dict) else value
        if not source:
            continue
        if isinstance(source, bytes):
            found.add(row, source)
            continue
        path = _file_of(folder, str(source).strip())
        if path.is_relative_to(folder):
            found.add(row, path)
        else:
            outside.append(row)
    return found, outside


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether an image column has the pictures themselves."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind))


def pictures_by_stem(config: DataConfig) -> dict[str, Path]:
    """File name without suffix to file, of all pictures below `images`; none where it is not set.

    Raises:
        ConfigError: When `images` is set and is no folder.
    """
    if config.images is None:
        return {}
    return {path.stem: path for path in sorted(_folder(config).rglob("*")) if data_suffix(path) in _SUFFIXES}


def _folder(config: DataConfig) -> Path:
    """What picture paths are relative to."""
    if config.images is not None:
        folder = Path(config.images).expanduser()
        if not folder.is_dir():
            raise ConfigError("data.images", config.images, "an existing folder")
        return folder.resolve()
    return find_files("data.items", config.items or "", "items")[0].parent.resolve()


def _relative(source: Path, folder: Path | None) -> str:
    """A picture's path as the dataset keeps it: the pictures may move, the dataset stays the same."""
    return str(source if folder is None else source.relative_to(folder))


def _file_of(folder: Path, name: str) -> Path:
    """Where a relative path leads. The folder's own name in front ("images/1.jpg" in images/) is meant once."""
    path = Path(os.path.normpath(folder / name))
    if Path(name).parts[:1] == (folder.name,) and not path.exists():
        return Path(os.path.normpath(folder.parent / name))
    return path


def _named_by_id(catalogue: Catalogue, config: DataConfig) -> _Found:
    found, files = _Found(), pictures_by_stem(config)
    for row, external in enumerate(catalogue.table.column(schema.ITEM_ID).to_pylist()):
        if external in files:
            found.add(row, files[external])
    if files and not found.rows:
        say(f"data.images: none of the {len(files)} pictures in {config.images} is named by an item id")
    return found


def _write(directory: Path, data: bytes, picture: validate.Picture) -> str:
    name = f"{IMAGES_FOLDER}/{picture.sha256}.{picture.suffix}"
    target = directory / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(data)
    return INSIDE + name
