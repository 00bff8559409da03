"""How histories are kept: many endpoints in one block of bytes, small enough for a ConfigMap. Pure.

Big-endian, format 1: `PWH`, the format's number, CRC-32 of all that follows; then when it was written (8 bytes, seconds since
1970), its first day (4, days since 1970), days (2), endpoints (2); then for each endpoint the length of its key (1), the key
`<namespace>.<name>`, and for each day 18 bytes of activity, then for each day 18 bytes of what is known. Bit n of a day (the
lowest of byte 0 is bit 0) is its n-th slot of ten minutes in UTC.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from agent.core.errors import Invalid
from agent.core.refs import MAX_KEY, EndpointKey, endpoint_key
from agent.demand.history import DAY_SLOTS, KEEP_DAYS, Track

SHARDS = 16
SHARD_ENDPOINTS = 512
DAY_BYTES = DAY_SLOTS // 8
MAX_DAYS = KEEP_DAYS + 1
MAX_BYTES = 1 << 20  # of a ConfigMap; a full shard has 80 % of that
_MAGIC = b"PWH"
_FORMAT = 1
_CHECK = struct.Struct(">3sBI")
_HEAD = struct.Struct(">QIHH")
_LAST_DAY = 1 << 20  # in the year 4840: what a clock or a file says beyond that is nonsense


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Histories that are kept together, and when they were written."""

    written_at: datetime
    tracks: Mapping[EndpointKey, Track] = field(default_factory=dict)


def encode(shard: Shard) -> bytes:
    """Return the shard as bytes: at most MAX_BYTES for SHARD_ENDPOINTS tracks over MAX_DAYS."""
    tracks = {key: track for key, track in shard.tracks.items() if track.known}
    first = min((track.first // DAY_SLOTS for track in tracks.values()), default=0)
    days = max((-(-track.end // DAY_SLOTS) for track in tracks.values()), default=first) - first
    if len(tracks) > SHARD_ENDPOINTS or days > MAX_DAYS:
        raise ValueError(f"{len(tracks)} endpoints over {days} days do not fit into one shard")
    parts = [_HEAD.pack(int(shard.written_at.timestamp()), first, days, len(tracks))]
    for key, track in sorted(tracks.items()):
        name = str(key).encode()
        bitmaps = (b.to_bytes(days * DAY_BYTES, "little") for b in track.bits(first * DAY_SLOTS, days * DAY_SLOTS))
        parts += [bytes([len(name)]), name, *bitmaps]
    body = b"".join(parts)
    return _CHECK.pack(_MAGIC, _FORMAT, zlib.crc32(body)) + body


def decode(content: bytes) -> Shard:
    """Read what `encode` wrote.

    Raises:
        Invalid: it did not, or not this version, or the bytes are damaged.
    """
    if len(content) < _CHECK.size or content[:3] != _MAGIC:
        raise Invalid("no history of prewarm's")
    _, version, checksum = _CHECK.unpack_from(content)
    if version != _FORMAT:
        raise Invalid(f"a history in format {version}, this version reads format {_FORMAT}")
    body = content[_CHECK.size :]
    if zlib.crc32(body) != checksum:
        raise Invalid("a damaged history: its checksum differs")
    try:
        return _decode(body)
    except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
        raise Invalid(f"a damaged history: {error}") from error


def _decode(body: bytes) -> Shard:
    seconds, first, days, count = _HEAD.unpack_from(body)
    if days > MAX_DAYS or count > SHARD_ENDPOINTS or first > _LAST_DAY:
        raise ValueError(f"{count} endpoints over {days} days from day {first}")
    at, size, tracks = _HEAD.size, days * DAY_BYTES, dict[EndpointKey, Track]()
    for _ in range(count):
        length = body[at]
        name = body[at + 1 : at + 1 + length]
        at += 1 + length
        bitmaps = body[at : at + 2 * size]
        at += 2 * size
        if length > MAX_KEY or len(bitmaps) != 2 * size:
            raise ValueError("it is cut off")
        active, known = (int.from_bytes(b, "little") for b in (bitmaps[:size], bitmaps[size:]))
        tracks[_key(name)] = Track(first=first * DAY_SLOTS, active=active, known=known)
    if at != len(body):
        raise ValueError(f"{len(body) - at} bytes too many")
    return Shard(written_at=datetime.fromtimestamp(seconds, UTC), tracks=tracks)


def _key(name: bytes) -> EndpointKey:
    namespace, _, rest = name.decode().partition(".")
    return endpoint_key(namespace, rest)
