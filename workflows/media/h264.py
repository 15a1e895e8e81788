"""The few bytes of H.264 that joining files needs: headers and packet framing (ISO/IEC 14496-10 and -15).

Knows no file and no codec library.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from workflows.errors import MediaError

SPS = 7
PPS = 8
LENGTH_BYTES = 4
"""MP4 stores each NAL unit behind its length; FFmpeg always uses four bytes for it."""
_START_CODE = re.compile(b"\x00\x00\x01")
_AVCC_HEADER_BYTES = 6


@dataclass(frozen=True, slots=True)
class Headers:
    """A stream's parameter sets. Streams with equal headers can follow each other in one track."""

    sps: tuple[bytes, ...]
    pps: tuple[bytes, ...]


def nal_units(annex_b: bytes) -> list[bytes]:
    """Split a packet with start codes into NAL units, start codes and padding removed."""
    starts = [match.end() for match in _START_CODE.finditer(annex_b)]
    ends = [start - 3 for start in starts[1:]] + [len(annex_b)]
    # A NAL unit never ends in zero; zeros before the next start code belong to that code.
    return [annex_b[start:end].rstrip(b"\x00") for start, end in zip(starts, ends, strict=True)]


def to_length_prefixed(annex_b: bytes) -> bytes:
    """Reframe a packet for MP4; parameter sets are dropped, since the track's header holds them."""
    kept = [unit for unit in nal_units(annex_b) if unit and unit[0] & 31 not in (SPS, PPS)]
    return b"".join(len(unit).to_bytes(LENGTH_BYTES, "big") + unit for unit in kept)


def read_headers(extradata: bytes) -> Headers:
    """Read the parameter sets from codec headers of either kind: MP4's `avcC` or start codes.

    Raises:
        MediaError: the bytes are neither, or frame NAL units with other than four length bytes.
    """
    if extradata[:1] != b"\x01":
        units = nal_units(extradata)
        return Headers(sps=tuple(u for u in units if u and u[0] & 31 == SPS),
                       pps=tuple(u for u in units if u and u[0] & 31 == PPS))
    if len(extradata) < _AVCC_HEADER_BYTES or (extradata[4] & 3) + 1 != LENGTH_BYTES:
        raise MediaError(problem="H.264 headers are damaged or use short NAL lengths")
    sps, at = _read_units(extradata, 5, extradata[5] & 31)
    pps, _ = _read_units(extradata, at, extradata[at] if at < len(extradata) else 0)
    return Headers(sps=sps, pps=pps)


def _read_units(data: bytes, count_at: int, count: int) -> tuple[tuple[bytes, ...], int]:
    units, at = [], count_at + 1
    for _ in range(count):
        size = int.from_bytes(data[at:at + 2], "big")
        units.append(data[at + 2:at + 2 + size])
        at += 2 + size
    return tuple(units), at
