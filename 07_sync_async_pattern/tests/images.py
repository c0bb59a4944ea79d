"""Valid and invalid images for the tests, made on demand."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GRADIENT = np.stack(
    [np.tile(np.linspace(0, 255, 90), (60, 1)), np.tile(np.linspace(255, 0, 60), (90, 1)).T, np.full((60, 90), 90)], -1
)
"""60 rows, 90 columns, asymmetric, so that a wrong orientation shows."""


def picture(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(GRADIENT.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """A PNG's chunk, its checksum correct unless another one is given."""
    correct = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", correct if checksum is None else checksum)


def insert_chunk(png: bytes, name: bytes, body: bytes, *, before: bytes, checksum: int | None = None) -> bytes:
    """The PNG with another chunk before the first one with that name."""
    at = png.index(before) - 4
    return png[:at] + chunk(name, body, checksum) + png[at:]


def png_header(width: int, height: int) -> bytes:
    """A PNG whose header claims this size, with hardly any data: a decompression bomb."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


def webp_header(width: int, height: int) -> bytes:
    """A lossless WebP whose header claims this size."""
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\x00"
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif_header(width: int, height: int) -> bytes:
    """A GIF whose only frame claims this size."""
    size = struct.pack("<HH", width, height)
    return b"GIF89a" + size + b"\x80\x00\x00" + bytes(6) + b"," + bytes(4) + size + b"\x00\x02\x01\x00\x00;"


def bomb(folder: Path, side: int) -> bytes:
    """A PNG of side x side black pixels, a thousandth of that in bytes."""
    path = folder / f"{side}.png"
    Image.new("L", (side, side)).save(path, compress_level=9)
    return path.read_bytes()
