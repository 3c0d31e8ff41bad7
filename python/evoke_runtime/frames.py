"""Frames as bytes. Their form is described, and bounded, where the platform reads them."""

import base64
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# What a connection begins with, in both directions; the last byte is the version.
PREFACE = b"\0evoke\0\x01"
# Length of the body, kind, number of the call.
HEAD = struct.Struct("<IBI")
LENGTH = struct.Struct("<I")
HELLO_BODY = struct.Struct("<II")
# Longest body, bytes of a message in one frame, and messages that are sent without asking.
BODY_BYTES_MAX = 128 << 10
PART_BYTES = 64 << 10
MESSAGE_FREE = 64 << 10
# Numbers of calls end there; a connection that reaches it is replaced.
CALL_MAX = 2**32 - 1

HELLO, REQUEST, MESSAGE, PART, END, CANCEL, GRANT, REPLY, FAULT = range(1, 10)


class Malformed(Exception):
    """What arrived is no frame."""


def frame(kind: int, call: int, body: bytes = b"") -> bytes:
    return HEAD.pack(len(body), kind, call) + body


def message(call: int, data: bytes) -> bytes:
    """A whole small message."""
    length = len(data)
    return HEAD.pack(4 + length, MESSAGE, call) + LENGTH.pack(length) + data


def headers(pairs: Iterable[tuple[str, str | bytes]]) -> bytes:
    """Headers as the platform reads them: binary values in base64, as HTTP would have them."""
    pieces = []
    for name, value in pairs:
        key = name.encode("ascii")
        data = base64.b64encode(value).rstrip(b"=") if isinstance(value, bytes) else value.encode("ascii")
        pieces += (bytes((len(key),)), key, len(data).to_bytes(2, "little"), data)
    return b"".join(pieces)


def pairs_of(metadata: Mapping[str, Any] | Collection[tuple[str, Any]] | None) -> Iterable[tuple[str, Any]]:
    if not metadata:
        return ()
    return metadata.items() if isinstance(metadata, Mapping) else metadata


def end_of_call(body: bytes) -> tuple[int, str, bytes, list[str]]:
    """Status, message, details and warnings."""
    place = 1

    def long() -> bytes:
        nonlocal place
        (length,) = LENGTH.unpack_from(body, place)
        start = place + LENGTH.size
        place = start + length
        if place > len(body):
            raise Malformed("the end of a call is cut off")
        return body[start:place]

    try:
        text, details = long().decode(), long()
        count = body[place]
        place += 1
        return body[0], text, details, [long().decode() for _ in range(count)]
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise Malformed(f"the end of a call is not readable: {error}") from error
