"""NAL units and headers, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.media.samples import write
from workflows.errors import MediaError
from workflows.media.gops import scan
from workflows.media.h264 import Headers, nal_units, read_headers, to_length_prefixed

SPS, PPS, SEI, IDR = b"\x67sps", b"\x68pps", b"\x06sei", b"\x65picture"
LONG, SHORT = b"\x00\x00\x00\x01", b"\x00\x00\x01"
AVCC = b"\x01\x64\x00\x0a\xff\xe1\x00\x04" + SPS + b"\x01\x00\x04" + PPS


def test_packets_are_split_at_long_and_short_start_codes() -> None:
    assert nal_units(LONG + SPS + SHORT + SEI + LONG + IDR) == [SPS, SEI, IDR]


def test_reframing_puts_lengths_before_units_and_leaves_headers_out() -> None:
    packet = LONG + SPS + LONG + PPS + SHORT + SEI + LONG + IDR
    assert to_length_prefixed(packet) == b"\x00\x00\x00\x04" + SEI + b"\x00\x00\x00\x08" + IDR


def test_headers_are_the_same_in_either_framing() -> None:
    expected = Headers(sps=(SPS,), pps=(PPS,))
    assert read_headers(AVCC) == expected
    assert read_headers(LONG + SPS + LONG + PPS + SHORT + SEI) == expected


def test_headers_of_a_real_clip_hold_one_set_of_each(tmp_path: Path) -> None:
    headers = scan(write(tmp_path / "clip.mp4", 3)).headers
    assert headers is not None
    assert [unit[0] & 31 for unit in (*headers.sps, *headers.pps)] == [7, 8]


DAMAGED = {"one byte": b"\x01", "cut": AVCC[:4], "two length bytes": AVCC[:4] + b"\xfd" + AVCC[5:]}


@pytest.mark.parametrize("data", DAMAGED.values(), ids=DAMAGED)
def test_damaged_headers_are_refused(data: bytes) -> None:
    with pytest.raises(MediaError, match="headers are damaged"):
        read_headers(data)
