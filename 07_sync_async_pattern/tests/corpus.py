"""Generators of files that are expensive to decode, or would be: each either just within the limits or beyond them."""

import struct
import zlib
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image

from tests.images import chunk, encode, insert_chunk, picture, webp_header

MAX_FILE_BYTES = 11_900_000  # with room for headers below MAX_IMAGE_BYTES


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    """A tile of noise, repeated."""
    tile = np.random.default_rng(0).integers(0, 256, (250, 250, channels), dtype=np.uint8)
    pixels = np.tile(tile, (-(-height // 250), -(-width // 250), 1))[:height, :width]
    return Image.fromarray(np.ascontiguousarray(pixels))


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    return encode(Image.new(mode, (width, height), "white"), "JPEG", **options)


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = jpeg(width, height, progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + count * last + data[-2:]


def noise_progressive() -> bytes:
    """Noise in 100 tiles, because Pillow's encoder has no room for all coefficients of a large one."""
    return encode(noise(2_000, 2_000).resize((4_000, 4_000)), "JPEG", quality=85, progressive=True)


def segments(segment: bytes, size: int) -> bytes:
    """A JPEG with this segment again and again."""
    data = encode(picture(), "JPEG")
    return data[:2] + size // len(segment) * segment + data[2:]


def rationals(size: int) -> bytes:
    """EXIF data with tags of a great many rationals where one number is expected."""
    count = (size - 100) // 8
    tags = [0x0112, 0x011A, 0x8769]
    entries = b"".join(struct.pack("<HHII", tag, 5, count, 50) for tag in tags)
    return (b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries).ljust(50, b"\0") + bytes([7]) * 8 * count


def jpeg_exif(size: int) -> bytes:
    """In segments of 64 kB, which Pillow puts together."""
    exif = rationals(size)
    pieces = [exif[at : at + 65_000] for at in range(0, len(exif), 65_000)]
    app1 = [b"\xff\xe1" + struct.pack(">H", len(piece) + 8) + b"Exif\0\0" + piece for piece in pieces]
    data = encode(picture(), "JPEG")
    return data[:2] + b"".join(app1) + data[2:]


def png(width: int, height: int, colour: int, depth: int = 8, interlaced: bool = False) -> bytes:
    """A PNG of one colour, with these values in its header."""
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] * depth
    passes = [(8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)] if interlaced else [(1, 1)]
    compressor = zlib.compressobj(1)
    pixels = []
    for across, down in passes:
        row = b"\x01" + bytes(-(-width // across) * bits // 8 + 1 - (-(-width // across) * bits % 8 == 0))
        pixels += [compressor.compress(row * 100) for _ in range(-(-height // down) // 100 + 1)]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = [chunk(b"PLTE", bytes(768))] if colour == 3 else []
    chunks = [
        chunk(b"IHDR", header),
        *palette,
        chunk(b"IDAT", b"".join(pixels) + compressor.flush()),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def png_with(name: bytes, body: bytes, count: int = 1) -> bytes:
    data = encode(picture(), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + count * chunk(name, body) + data[at:]


def png_bomb() -> bytes:
    """One pixel in its header, hundreds of megabytes in its data."""
    compressor = zlib.compressobj(9)
    data = b"".join(compressor.compress(bytes(10**7)) for _ in range(20)) + compressor.flush()
    header = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def gif(width: int, height: int, **options: object) -> bytes:
    return encode(Image.new("P", (width, height)), "GIF", **options)


def png_of_frame(width: int, height: int, colour: int) -> bytes:
    """A PNG whose default image is hidden, and whose first frame leaves out a row and a column."""
    frame = png(width - 1, height - 1, colour)
    at = frame.index(b"IDAT")
    pixels = frame[at + 4 : at + 4 + int.from_bytes(frame[at - 4 : at])]
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    control = struct.pack(">5I2H2B", 0, width - 1, height - 1, 1, 1, 1, 10, 0, 0)
    chunks = [(b"IHDR", header), (b"acTL", struct.pack(">2I", 1, 0)), (b"IDAT", b""), (b"fcTL", control)]
    chunks += [(b"fdAT", bytes(4) + pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks)


def gif_of_frame(width: int, height: int, frame_width: int, frame_height: int) -> bytes:
    """A GIF whose image does not fill it."""
    data = bytearray(gif(frame_width, frame_height))
    data[6:10] = struct.pack("<2H", width, height)
    return bytes(data)


def gif_extensions(kind: bytes, block: bytes) -> bytes:
    """A GIF with as many of these extensions before its image as there is room for."""
    data = encode(picture(), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1))
    extension = b"!" + kind + block
    return data[:at] + (MAX_FILE_BYTES // len(extension)) * extension + data[at:]


def gif_comment(piece: bytes) -> bytes:
    """A GIF with one comment in pieces of this text."""
    data = encode(picture(), "GIF")
    at = 13 + (3 << ((data[10] & 7) + 1))
    pieces = MAX_FILE_BYTES // (len(piece) + 1) * (bytes([len(piece)]) + piece)
    return data[:at] + b"!\xfe" + pieces + b"\0" + data[at:]


def webp_exif(size: int) -> bytes:
    return encode(picture(), "WEBP", exif=rationals(size))


def bmp_runs(width: int, height: int, compression: int, runs: bytes) -> bytes:
    """A BMP in run lengths: `runs` as often as there is room for."""
    data = encode(Image.new("P", (1, 1)), "BMP")
    header = bytearray(data[: int.from_bytes(data[10:14], "little")])
    header[18:26] = struct.pack("<ii", width, height)
    header[28:34] = struct.pack("<HI", 8 if compression == 1 else 4, compression)
    return bytes(header) + (MAX_FILE_BYTES - len(header)) // len(runs) * runs


def avif_that_lies(width: int, height: int) -> bytes:
    """An AVIF whose container claims one pixel."""
    data = bytearray(encode(Image.new("RGB", (width, height)), "AVIF", speed=10, subsampling="4:4:4"))
    at = data.index(b"ispe") + 8
    data[at : at + 8] = struct.pack(">II", 1, 1)
    return bytes(data)


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def trns(data: bytes, value: bytes) -> bytes:
    return insert_chunk(data, b"tRNS", value, before=b"IDAT")


# What each is, how it is made, and whether it is decoded; None: either is right.
CASES: dict[str, tuple[Callable[[], bytes], bool | None]] = {
    "JPEG of 50 megapixels": (partial(jpeg, 10_000, 5_000, quality=90), True),
    "PNG of 50 megapixels, RGBA, in a frame": (partial(png_of_frame, 10_000, 5_000, 6), False),
    "PNG of 33 megapixels, RGBA, in a frame": (partial(png_of_frame, 8_000, 4_100, 6), True),
    "PNG of 50 megapixels, RGB, in a frame": (partial(png_of_frame, 10_000, 5_000, 2), True),
    "GIF of 50 megapixels, in a frame": (partial(gif_of_frame, 10_000, 5_000, 9_999, 5_000), False),
    "GIF of 44 megapixels, in a frame": (partial(gif_of_frame, 8_800, 5_000, 8_799, 5_000), True),
    "GIF of 50 megapixels with one": (partial(gif_of_frame, 10_000, 5_000, 1, 1), True),
    "JPEG of 50 megapixels, full colour": (partial(jpeg, 10_000, 5_000, subsampling=0), True),
    "JPEG of 50 megapixels, upright": (lambda: jpeg(10_000, 5_000, exif=turned()), True),
    "JPEG of 50 megapixels, progressive": (partial(jpeg, 10_000, 5_000, progressive=True), True),
    "JPEG of 50 megapixels, progressive in full colour": (
        partial(jpeg, 10_000, 5_000, progressive=True, subsampling=0),
        False,
    ),
    "JPEG of 40 megapixels, progressive in full colour": (
        partial(jpeg, 8_000, 4_900, progressive=True, subsampling=0),
        None,
    ),
    "JPEG of 50 megapixels, CMYK": (partial(jpeg, 10_000, 5_000, "CMYK"), None),
    "JPEG of 33 megapixels, CMYK, progressive": (partial(jpeg, 6_600, 5_000, "CMYK", progressive=True), None),
    "JPEG of noise": (lambda: encode(noise(3_300, 3_300), "JPEG", quality=70), True),
    "JPEG of noise, progressive": (noise_progressive, True),
    "JPEG with 498 scans": (partial(scans, 7_000, 7_000, 488), False),
    "JPEG with 300 scans": (partial(scans, 1_500, 1_500, 290), None),
    "JPEG with 15 scans": (partial(scans, 7_000, 7_000, 5), None),
    "JPEG with 50,000 scans": (partial(scans, 64, 64, 40_000), None),
    "JPEG of one column with 1,000 scans": (partial(scans, 1, 65_500, 1_000), None),
    "JPEG with 7 MB of rationals": (partial(jpeg_exif, 7_000_000), True),
    "JPEG with empty EXIF segments": (partial(segments, b"\xff\xe1\0\x08Exif\0\0", 11_000_000), False),
    "JPEG with comments": (partial(segments, b"\xff\xfe\0\x02", 11_000_000), False),
    "JPEG of markers": (partial(segments, b"\xff\x01", 11_000_000), False),
    "PNG of 50 megapixels": (partial(png, 10_000, 5_000, 2), True),
    "PNG of 50 megapixels, palette": (partial(png, 10_000, 5_000, 3, 1), None),
    "PNG of 50 megapixels, RGBA": (partial(png, 10_000, 5_000, 6), None),
    "PNG of 50 megapixels, RGBA in 16 bits": (partial(png, 10_000, 5_000, 6, 16), None),
    "PNG of 20 megapixels, RGBA in 16 bits": (partial(png, 5_000, 4_000, 6, 16), True),
    "PNG of 50 megapixels, grey in 16 bits": (partial(png, 10_000, 5_000, 0, 16), True),
    "PNG of 50 megapixels, transparent grey": (lambda: trns(png(10_000, 5_000, 0, 16), b"\0\1"), True),
    "PNG of 50 megapixels, one colour transparent": (lambda: trns(png(10_000, 5_000, 2), bytes(6)), None),
    "PNG of 50 megapixels, interlaced": (partial(png, 10_000, 5_000, 2, 8, True), None),
    "PNG of noise": (lambda: encode(noise(2_200, 1_800), "PNG", compress_level=1), True),
    "PNG with 7 MB of rationals": (lambda: png_with(b"eXIf", rationals(7_000_000)), True),
    "PNG with hundreds of megabytes of text": (lambda: png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))), True),
    "PNG with a profile of hundreds of megabytes": (
        lambda: png_with(b"iCCP", b"a\0\0" + zlib.compress(bytes(10**8))),
        True,
    ),
    "PNG with a million chunks": (lambda: png_with(b"teSt", b"", 900_000), False),
    "PNG that unpacks to hundreds of megabytes": (png_bomb, True),
    "GIF of 50 megapixels": (partial(gif, 10_000, 5_000), True),
    "GIF of 50 megapixels, transparent": (partial(gif, 10_000, 5_000, transparency=0), None),
    "GIF with a comment of 12 MB": (partial(gif_comment, bytes(255)), True),
    "GIF with a comment in six million pieces": (partial(gif_comment, b"a"), False),
    "GIF with a million extensions": (partial(gif_extensions, b"\xf9", b"\x04" + bytes(5)), False),
    "WebP of 38 bytes and 50 megapixels": (partial(webp_header, 16_383, 3_051), False),
    "WebP of 38 bytes and 20 megapixels": (partial(webp_header, 16_383, 1_220), None),
    "WebP of 20 megapixels": (lambda: encode(Image.new("RGB", (5_000, 4_000)), "WEBP", method=0), None),
    "WebP of 15 megapixels, RGBA": (lambda: encode(noise(5_000, 3_000, 4), "WEBP", method=0, quality=10), None),
    "WebP of 15 megapixels, lossless": (
        lambda: encode(Image.new("RGBA", (5_000, 3_000), (1, 2, 3, 4)), "WEBP", lossless=True, method=0, quality=0),
        None,
    ),
    "WebP of noise": (lambda: encode(noise(4_000, 3_500), "WEBP", method=0, quality=90), None),
    "WebP with 7 MB of rationals": (partial(webp_exif, 7_000_000), True),
    "BMP of 4 megapixels": (lambda: encode(Image.new("RGB", (2_000, 1_999)), "BMP"), True),
    "BMP of 50 megapixels, black and white": (lambda: encode(Image.new("1", (10_000, 5_000)), "BMP"), True),
    "BMP in runs of one": (partial(bmp_runs, 4_000, 4_000, 1, b"\1\1"), False),
    "BMP in runs of nothing": (partial(bmp_runs, 4_000, 4_000, 2, b"\0\0\1\1"), False),
    "BMP of 49 megapixels in runs": (partial(bmp_runs, 7_000, 7_000, 1, b"\xff\1"), False),
    "AVIF of 20 megapixels": (lambda: encode(Image.new("RGB", (5_000, 4_000)), "AVIF", speed=10), None),
    "AVIF of 25 megapixels": (lambda: encode(Image.new("RGB", (5_000, 4_990)), "AVIF", speed=10), True),
    "AVIF of 12 megapixels, RGBA": (lambda: encode(Image.new("RGBA", (4_000, 3_000)), "AVIF", speed=10), True),
    "AVIF of 12 megapixels of noise": (lambda: encode(noise(4_000, 3_000), "AVIF", speed=10, quality=50), None),
    "AVIF of 50 megapixels": (lambda: encode(Image.new("RGB", (10_000, 5_000)), "AVIF", speed=10), None),
    "AVIF of 9 megapixels, RGBA": (lambda: encode(noise(3_000, 3_000, 4), "AVIF", speed=10, quality=20), None),
    "AVIF of 50 megapixels that claims to have one": (partial(avif_that_lies, 10_000, 5_000), None),
    "AVIF of 144 megapixels that claims to have one": (partial(avif_that_lies, 12_000, 12_000), False),
}
