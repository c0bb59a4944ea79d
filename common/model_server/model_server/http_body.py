"""What REST reads and sends: bodies within a limit of memory, decompressed, and responses."""

from __future__ import annotations

import os
import zlib
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import unquote_to_bytes

from . import json_codec
from .status import HTTP_STATUS, Code, StatusError, invalid

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, MutableMapping

    Header = tuple[bytes, bytes]
    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# What reading a body may take, in bytes: its text, and about how much Python needs to hold the parsed document. Half of
# a container of 1 GiB; the server itself has the other half.
MAX_BODY_MEMORY = int(os.environ.get("MODEL_SERVER_MAX_BODY_MEMORY", 512 << 20))
INFLATE_STEP = 1 << 20
# Measured: a Python number with the references to it, an empty list, an object with one key.
BYTES_PER_VALUE = 56
BYTES_PER_LIST = 88
BYTES_PER_OBJECT = 240

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain")
BINARY = (b"content-type", b"application/octet-stream")


class BodyTooLarge(StatusError):
    """413, which no other status code stands for."""

    def __init__(self) -> None:
        super().__init__(
            Code.INVALID_ARGUMENT, f"Reading the body would take more than {MAX_BODY_MEMORY} bytes of memory"
        )


class RestRequest(NamedTuple):
    """Body and headers, whose names are in lower case."""

    body: bytes
    headers: Iterable[Header]

    def header(self, name: bytes) -> bytes:
        """The value of a header; empty without it."""
        return next((value for found, value in self.headers if found == name), b"")

    def content(self, text_size: int | None = None) -> bytes:
        """The body, decompressed. Its first `text_size` bytes, all without it, are JSON, which takes more memory.

        Raises:
            StatusError: INVALID_ARGUMENT for a broken compression; BodyTooLarge.
        """
        if self.header(b"content-encoding").lower() in (b"gzip", b"deflate"):
            return _inflate(self.body, text_size)
        check_memory(_memory(self.body, text_size))
        return self.body


class RestResponse(NamedTuple):
    """Status code, content type, body and further headers."""

    status: int
    content_type: Header
    body: bytes
    headers: tuple[Header, ...] = ()


def failure(error: StatusError) -> RestResponse:
    """The response to a request that cannot be served, in both protocols."""
    status = 413 if isinstance(error, BodyTooLarge) else HTTP_STATUS[error.code]
    return RestResponse(status, JSON, json_codec.error_body(str(error)))


def unquote(text: str) -> str:
    """A part of a path without its percent escapes."""
    return unquote_to_bytes(text).decode("utf-8", "replace")


async def read_body(receive: Receive) -> bytes | None:
    """The whole body; None if the client has disconnected.

    Raises:
        BodyTooLarge: already its text takes too much memory.
    """
    chunks = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        check_memory(size)
        if not message.get("more_body"):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def check_memory(memory: int) -> None:
    """Raises BodyTooLarge if so many bytes are more than a request may take."""
    if memory > MAX_BODY_MEMORY:
        raise BodyTooLarge


def _inflate(body: bytes, text_size: int | None) -> bytes:
    # Of gzip and of zlib, which HTTP calls deflate.
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)
    parts, memory, size = [], 0, 0
    try:
        while body and not inflater.eof:
            # In steps, because a few megabytes can expand to a thousand times as many.
            parts.append(inflater.decompress(body, INFLATE_STEP))
            body = inflater.unconsumed_tail
            memory += _memory(parts[-1], None if text_size is None else max(0, text_size - size))
            size += len(parts[-1])
            check_memory(memory)
    except zlib.error as error:
        raise invalid(f"Cannot decompress the body: {error}") from None
    if not inflater.eof:
        raise invalid("Cannot decompress the body: it is incomplete")
    return b"".join(parts)


def _memory(content: bytes, text_size: int | None) -> int:
    """About the bytes that it takes to read JSON, twice the text, its strings, and Python's objects; and what follows
    after `text_size`, once here and once in the arrays."""
    text = content[:text_size]
    per_character = 3 if text.isascii() else 6
    return (
        len(text) * per_character
        + text.count(b",") * BYTES_PER_VALUE
        + text.count(b"[") * BYTES_PER_LIST
        + text.count(b"{") * BYTES_PER_OBJECT
        + (len(content) - len(text)) * 2
    )
