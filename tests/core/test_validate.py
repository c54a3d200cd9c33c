import datetime
import io
import struct
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recsys_ray.core import validate
from recsys_ray.core.validate import PictureLimits, check_picture, check_pictures


def column(values, kind=None):
    return pa.chunked_array([pa.array(values, kind)])


def found(problems):
    return {reason: np.flatnonzero(mask).tolist() for reason, mask in problems.items() if mask.any()}


# Ids


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([" a ", "", "  ", None, "007"], ["a", None, None, None, "007"]),
        ([1, 2, None], ["1", "2", None]),
        ([1.0, None, float("nan"), 12.0], ["1", None, None, "12"]),
        ([1.0, 2.5], ["1", "2.5"]),
        ([None, None], [None, None]),
        ([], []),
    ],
)
def test_ids(values, expected):
    assert validate.clean_ids(column(values)).to_pylist() == expected


def test_ids_of_other_string_types():
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        assert validate.clean_ids(column(["a", None]).cast(kind)).to_pylist() == ["a", None]


# Timestamps


@pytest.mark.parametrize(("unit", "factor"), [("s", 10**6), ("ms", 10**3), ("us", 1)])
def test_numbers_of_each_unit(unit, factor):
    for values in ([0, 5, 1_000_000], ["0", "5", " 1000000"], [0.0, 5.0, 1e6]):
        times, problems = validate.parse_timestamps(column(values), unit)
        assert times.tolist() == [0, 5 * factor, 10**6 * factor]
        assert found(problems) == {}


def test_nanoseconds_are_cut_to_microseconds():
    assert validate.parse_timestamps(column([1_700_000_000_123_456_789]), "ns")[0].tolist() == [1_700_000_000_123_456]


TEXTS = {
    "2024-01-01": 1_704_067_200_000_000,
    "2024-01-01T10:00:00": 1_704_103_200_000_000,
    "2024-01-01 10:00:00.250": 1_704_103_200_250_000,
    "2024-01-01T10:00:00Z": 1_704_103_200_000_000,
    "2024-01-01T12:00:00+02:00": 1_704_103_200_000_000,
    "1704067200": 1_704_067_200_000_000,
    "1704067200.5": 1_704_067_200_500_000,
}


def test_texts_alone_and_mixed_give_the_same():
    for text, expected in TEXTS.items():
        assert validate.parse_timestamps(column([text]), "s")[0].tolist() == [expected], text
    times, problems = validate.parse_timestamps(column([*TEXTS, "never"]), "s")
    assert times.tolist() == [*TEXTS.values(), 0]
    assert found(problems) == {validate.BAD_TIMESTAMP: [len(TEXTS)]}


def test_arrow_times():
    moment = datetime.datetime(2024, 1, 1, 10)
    for kind in ("s", "ms", "us", "ns"):
        assert validate.parse_timestamps(column([moment], pa.timestamp(kind)), "s")[0].tolist() == [
            1_704_103_200_000_000
        ]
    assert validate.parse_timestamps(column([moment.date()]), "s")[0].tolist() == [1_704_067_200_000_000]


def test_bad_timestamps_have_their_reasons():
    values = [None, "", "2024-02-30", "nan", "inf", "3024-01-01", "99999999999999999999", "1"]
    _, problems = validate.parse_timestamps(column(values), "s")
    assert found(problems) == {
        validate.MISSING_TIMESTAMP: [0, 1],
        validate.BAD_TIMESTAMP: [2, 3, 4],
        validate.TIMESTAMP_RANGE: [5, 6],
    }
    _, problems = validate.parse_timestamps(column([None, float("nan"), 1e300, 1.0]), "s")
    assert found(problems) == {
        validate.MISSING_TIMESTAMP: [0],
        validate.BAD_TIMESTAMP: [1],
        validate.TIMESTAMP_RANGE: [2],
    }
    _, problems = validate.parse_timestamps(column([2**62, -(2**62), 1]), "s")
    assert found(problems) == {validate.TIMESTAMP_RANGE: [0, 1]}
    assert found(validate.parse_timestamps(column([True]), "s")[1]) == {validate.BAD_TIMESTAMP: [0]}


@given(st.datetimes(datetime.datetime(1900, 1, 2), datetime.datetime(2199, 12, 31)))
def test_any_iso_text_is_exact(moment):
    expected = (moment - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    assert validate.parse_timestamps(column([moment.isoformat()]), "s")[0].tolist() == [expected]
    assert validate.parse_timestamps(column([moment.isoformat(), "x"]), "s")[0].tolist() == [expected, 0]


# Weights


def test_weights():
    values = [1.5, 0.0, None, float("nan"), -1.0, float("inf"), float("-inf"), 1e300]
    expected = {
        validate.MISSING_WEIGHT: [2],
        validate.NAN_WEIGHT: [3],
        validate.NEGATIVE_WEIGHT: [4, 6],
        validate.INFINITE_WEIGHT: [5, 7],
    }
    weights, problems = validate.parse_weights(column(values))
    assert found(problems) == expected
    assert weights[:2].tolist() == [1.5, 0.0]
    texts = ["" if value is None else str(value) for value in values]
    assert found(validate.parse_weights(column(texts))[1]) == expected
    assert found(validate.parse_weights(column(["many", "2"]))[1]) == {validate.NAN_WEIGHT: [0]}
    assert validate.parse_weights(column([3, 4]))[0].tolist() == [3.0, 4.0]


# Pictures


def encoded(size=(64, 48), kind="JPEG", mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, 1).save(buffer, kind)
    return buffer.getvalue()


def png_header(width, height):
    """A PNG that promises many pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


@pytest.mark.parametrize("kind", validate.PICTURE_FORMATS)
def test_good_pictures_of_each_format(kind):
    picture = check_picture(encoded(kind=kind), PictureLimits())
    assert (picture.reason, picture.suffix) == (None, kind.lower())
    assert len(picture.sha256) == 64


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", validate.PICTURE_UNDECODABLE),
        (b"<html>not found</html>", validate.PICTURE_UNDECODABLE),
        (encoded((100, 100))[:-20], validate.PICTURE_UNDECODABLE),
        (encoded(kind="PNG")[:-30], validate.PICTURE_UNDECODABLE),
        (encoded(kind="TIFF"), validate.PICTURE_UNDECODABLE),
        (encoded((101, 100)), validate.PICTURE_TOO_MANY_PIXELS),
        (png_header(12_000, 12_000), validate.PICTURE_TOO_MANY_PIXELS),
        (png_header(60_000, 60_000), validate.PICTURE_TOO_MANY_PIXELS),
        (b"x" * 20_001, validate.PICTURE_TOO_MANY_BYTES),
    ],
)
def test_bad_pictures(data, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_picture(data, PictureLimits(max_bytes=20_000, max_pixels=10_000)).reason == reason


def test_a_bomb_is_refused_at_any_limit():
    limits = PictureLimits(max_pixels=80_000_000)
    assert check_picture(png_header(12_000, 12_000), limits).reason == validate.PICTURE_TOO_MANY_PIXELS


def test_files_and_threads_keep_the_order(tmp_path):
    (tmp_path / "good.png").write_bytes(encoded(kind="PNG"))
    sources = [tmp_path / "good.png", tmp_path / "absent.jpg", b"bad", tmp_path, encoded()] * 5
    reasons = [picture.reason for picture in check_pictures(sources, PictureLimits(), threads=3)]
    missing, bad = validate.PICTURE_MISSING, validate.PICTURE_UNDECODABLE
    assert reasons == [None, missing, bad, missing, None] * 5
    alone = [check_picture(source, PictureLimits()) for source in sources]
    assert alone == list(check_pictures(sources, PictureLimits(), threads=3))
