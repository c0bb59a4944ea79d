"""What an image file is and what decoding it will cost, read from its bytes before anything is decoded.

Pillow gets only what the pixels need. It parses comments, EXIF data and previews in Python, for which a small file can
take seconds, and refuses files over faults in them that no viewer minds.
"""

import contextlib
import re
import struct
import zlib
from dataclasses import dataclass

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF")
MAX_PARTS = 50_000
"""Most segments, chunks or blocks of a file. A camera's JPEG has a hundred, a PNG of 12 MB in 8 kB chunks 1,500."""
MAX_PROFILE_BYTES = 4_000_000
"""Larger colour profiles are ignored. Those of printing presses have up to 3 MB."""

# Formats that are recognised to be refused by name. The first bytes decide.
OTHERS = {
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\1\0": "ICO",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "Photoshop",
}
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}

# In entropy-coded data, 0xFF is followed by 0, by a restart marker or by more 0xFF; anything else begins a segment.
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
SOF = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}
METADATA = {*range(0xE1, 0xF0), 0xFE}  # of which Adobe's, 0xEE, says what the components mean
PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}


class Unreadable(Exception):
    """The file is refused; the message, a predicate, says why."""


class Damaged(Unreadable):
    def __init__(self) -> None:
        super().__init__("is a damaged or truncated image")


@dataclass(kw_only=True)
class ImageFile:
    """A file, and what decoding costs in addition to the pixels of the decoded image."""

    format: str
    data: bytes
    """What Pillow is to decode."""
    orientation: int = 1
    """EXIF's, from 1 to 8."""
    profile: bytes | None = None
    """The colours' ICC profile, where Pillow does not find it in `data`."""
    gamma: float | None = None
    """Of a PNG without a profile: value ** (1 / gamma) is light, where sRGB has a curve of its own."""
    canvas: tuple[int, int, int, int] | None = None
    """Where the first frame of a PNG or GIF is, and the size of the image; None: it fills the image."""
    ns_per_pixel: float = 0
    ns_per_byte: float = 0
    memory_per_pixel: float = 0
    """Bytes that the decoder needs for a pixel beside those of the decoded image."""
    padding: int = 1
    """Width and height are decoded in multiples of this."""
    scans: int = 1

    def cpu_s(self, width: int, height: int) -> float:
        """CPU seconds for decoding, measured on one core of 2024 and rounded up."""
        padded = -(-width // self.padding) * -(-height // self.padding) * self.padding**2
        return (padded * self.ns_per_pixel + len(self.data) * self.ns_per_byte) / 1e9


def read_file(data: bytes) -> ImageFile:
    """Raises Unreadable if the format is not in FORMATS, or the file's structure is damaged."""
    try:
        return _read(data)
    except (IndexError, struct.error) as exc:  # a part is shorter than its kind needs
        raise Damaged from exc


def _read(data: bytes) -> ImageFile:
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg(data)
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    if data.startswith(b"BM"):
        return _bmp(data)
    if data[4:8] == b"ftyp":
        return _avif(data)
    formats = ", ".join(FORMATS)
    for start, name in OTHERS.items():
        if data.startswith(start):
            article = "an" if name == "ICO" else "a"
            raise Unreadable(f"is {article} {name} file, which is not supported ({formats})")
    raise Unreadable(f"is not an image in a known format ({formats})")


def _jpeg(data: bytes) -> ImageFile:
    """The first image of the file without its metadata, previews and whatever follows it."""
    kept = [data[:2]]
    profile: dict[int, bytes] = {}
    components: dict[int, float] = {}  # share of the pixels that each has: 1, or 0.25 where colour has half the size
    file = ImageFile(format="JPEG", data=b"", ns_per_byte=15, scans=0, padding=32)
    coverage = 0.0
    is_progressive = False
    at = 2
    for _ in range(MAX_PARTS):
        if (found := JPEG_MARKER.search(data, at)) is None:
            kept.append(data[at:])  # truncated, which libjpeg finds out
            break
        start, marker = found.start(), data[found.start() + 1]
        if file.scans:  # before them, bytes between segments belong to none
            kept.append(data[at:start])
        if marker == 0xD9:
            kept.append(data[start : start + 2])
            break
        if marker in (0x01, 0xD8):
            at = start + 2
            continue
        at = start + 2 + int.from_bytes(data[start + 2 : start + 4])
        body = data[start + 4 : at]
        if at < start + 4 or at > len(data):
            raise Damaged
        if marker == 0xE1 and body.startswith(b"Exif\0\0") and file.orientation == 1:
            file.orientation = exif_orientation(body[6:])
        elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
            profile[body[12] if len(body) > 12 else 0] = body[14:]
        elif marker in SOF and len(body) > 5:
            if body[0] != 8:
                raise Unreadable(f"is a {body[0]}-bit JPEG; only JPEGs of 8 bits are supported")
            if marker in (0xC3, 0xC7, 0xCB, 0xCF):
                raise Unreadable("is a lossless JPEG, which is not supported")
            areas = {body[i]: (body[i + 1] >> 4) * (body[i + 1] & 15) for i in range(6, len(body) - 2, 3)}
            largest = max(areas.values(), default=0) or 1
            components = {component: area / largest for component, area in areas.items()}
            is_progressive = marker in PROGRESSIVE
        elif marker == 0xDA:
            file.scans += 1
            coverage += sum(components.get(body[i], 1) for i in range(1, min(len(body), 2 * body[0] + 1), 2))
        if marker == 0xEE or marker not in METADATA:
            kept.append(data[start:at])
    else:
        raise Unreadable(f"has more than {MAX_PARTS} segments")
    file.data = b"".join(kept)
    file.ns_per_pixel = 10
    if is_progressive or file.scans > 1:
        # Each scan goes through the whole image, whose coefficients are held until the last one.
        file.ns_per_pixel += 1.2 * coverage
        file.memory_per_pixel = 2 * sum(components.values())
        file.ns_per_byte = 30
    file.profile = b"".join(profile[number] for number in sorted(profile)) or None
    return file


def _png(data: bytes) -> ImageFile:
    """The image in four chunks; of an animation whose default image is hidden, the first frame."""
    header = data[16:29]
    chunks: dict[bytes, bytes] = {}
    pixels: list[bytes] = []
    frames: list[bytes] = []
    frame_pixels: list[bytes] = []
    file = ImageFile(format="PNG", data=b"", ns_per_byte=18)
    is_hidden = False
    at = 8
    for _ in range(MAX_PARTS):
        if at + 12 > len(data):
            break
        length, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            if name == b"IDAT" or not pixels:
                raise Damaged
            break
        body = data[at + 8 : end]
        is_whole = zlib.crc32(body, zlib.crc32(name)) == int.from_bytes(data[end : end + 4])
        at = end + 4
        if not is_whole:
            if name[0] & 0x20:  # ancillary: does without it, as browsers do
                continue
            if name != b"IDAT":  # zlib checks the pixels by a checksum of its own
                raise Damaged
        if name == b"IEND":
            break
        if name == b"IDAT":
            is_hidden = is_hidden or (not pixels and b"acTL" in chunks and not frames)
            pixels.append(body)
        elif name == b"fcTL":
            frames.append(body)
        elif name == b"fdAT" and len(frames) == 1:
            frame_pixels.append(body[4:])
        else:
            chunks.setdefault(name, body)
    else:
        raise Unreadable(f"has more than {MAX_PARTS} chunks")
    if len(header) < 13 or b"IHDR" not in chunks:
        raise Damaged
    if is_hidden and frame_pixels and len(frames[0]) >= 20:
        width, height, left, top = struct.unpack(">4I", frames[0][4:20])
        file.canvas = (left, top, *struct.unpack(">2I", header[:8]))
        header = struct.pack(">2I", width, height) + header[8:]
        pixels = frame_pixels
    depth, colour = header[8:10]
    if colour == 0 and depth in (2, 4) and len(chunks.get(b"tRNS", b"")) == 2:
        highest = 2**depth - 1  # Pillow compares the transparent grey with pixels that it has widened to 8 bits
        chunks[b"tRNS"] = bytes([0, (chunks[b"tRNS"][1] & highest) * 255 // highest])
    kept = {b"IHDR": header}
    kept |= {name: chunks[name] for name in (b"PLTE", b"tRNS") if name in chunks}
    kept |= {b"IDAT": b"".join(pixels), b"IEND": b""}
    file.data = data[:8] + b"".join(
        part
        for name, body in kept.items()
        for part in (struct.pack(">I", len(body)), name, body, struct.pack(">I", zlib.crc32(body, zlib.crc32(name))))
    )
    channels = {2: 3, 4: 2, 6: 4}.get(colour, 1)
    file.ns_per_pixel = 5 + 2.5 * channels * depth / 8 + (10 if header[12] else 0)
    if b"eXIf" in chunks:
        file.orientation = exif_orientation(chunks[b"eXIf"])
    if b"iCCP" in chunks:
        _, _, compressed = chunks[b"iCCP"].partition(b"\0")
        with contextlib.suppress(zlib.error):  # colours without a profile are better than no image
            file.profile = zlib.decompressobj().decompress(compressed[1:], MAX_PROFILE_BYTES)
    elif b"sRGB" not in chunks:
        file.gamma = int.from_bytes(chunks.get(b"gAMA", b"")[:4]) / 100_000 or None
    return file


def _gif(data: bytes) -> ImageFile:
    """The file without the comments and other extensions before its first image, and cropped to that."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    head, control = data[:at], b""
    parts = 0
    while data[at : at + 1] == b"!":
        start = at
        at += 2
        while at < len(data) and data[at]:
            at += data[at] + 1
            if (parts := parts + 1) > MAX_PARTS:
                raise Unreadable(f"has more than {MAX_PARTS} blocks before its first image")
        at += 1
        if data[start + 1 : start + 2] == b"\xf9":  # how the next image is shown, its transparent colour among them
            control = data[start:at]
    file = ImageFile(format="GIF", data=head + control + data[at:], ns_per_pixel=6, ns_per_byte=10)
    if len(data) >= at + 10 and data[at : at + 1] == b",":
        left, top, width, height = struct.unpack_from("<4H", data, at + 1)
        canvas = struct.unpack_from("<2H", data, 6)
        if (width, height) != canvas and left + width <= canvas[0] and top + height <= canvas[1]:
            file.canvas = (left, top, *canvas)  # Pillow would fill the rest with a colour of the palette
            size = data[at + 5 : at + 9]
            file.data = head[:6] + size + head[10:] + control + b"," + bytes(4) + size + data[at + 9 :]
    return file


def _webp(data: bytes) -> ImageFile:
    """The file with its EXIF and XMP data hidden from Pillow."""
    file = ImageFile(format="WEBP", data=data, ns_per_pixel=50, ns_per_byte=100, memory_per_pixel=16)
    hidden = bytearray(data)
    at = 12
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            file.data = bytes(hidden)
            return file
        name = data[at : at + 4]
        end = at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"EXIF":
            file.orientation = exif_orientation(data[at + 8 : end].removeprefix(b"Exif\0\0"))
        if name in (b"EXIF", b"XMP "):
            hidden[at : at + 4] = b"none"
        at = end + end % 2
    raise Unreadable(f"has more than {MAX_PARTS} chunks")


def _bmp(data: bytes) -> ImageFile:
    compression = int.from_bytes(data[30:34], "little") if data[14:15] != b"\x0c" else 0
    if compression in (1, 2):  # run lengths, which Pillow decodes in Python
        return ImageFile(format="BMP", data=data, ns_per_pixel=100, ns_per_byte=500, memory_per_pixel=3)
    return ImageFile(format="BMP", data=data, ns_per_pixel=6)


def _avif(data: bytes) -> ImageFile:
    """The file with its EXIF data hidden from Pillow: AVIF's own properties say how it is turned."""
    length = int.from_bytes(data[:4])
    brands = {data[8:12]} | {data[i : i + 4] for i in range(16, min(length, 1000), 4)}
    if not brands & {b"avif", b"avis"}:
        if brands & HEIC_BRANDS:
            raise Unreadable("is a HEIC photo, which is not supported: export it as JPEG")
        raise Unreadable(f"is not an image in a known format ({', '.join(FORMATS)})")
    at, hidden = 0, data
    for _ in range(100):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if name == b"meta":
            hidden = data[:at] + data[at : at + size].replace(b"Exif", b"none") + data[at + size :]
            break
        if size < 8:
            break
        at += size
    return ImageFile(format="AVIF", data=hidden, ns_per_pixel=55, ns_per_byte=100, memory_per_pixel=12)


def exif_orientation(exif: bytes) -> int:
    """The tag 0x0112 of EXIF data that begin with the byte order; 1 if it is missing or invalid."""
    if exif[:2] not in (b"II", b"MM"):
        return 1
    order = "<" if exif[:2] == b"II" else ">"
    try:
        [start] = struct.unpack_from(order + "I", exif, 4)
        [entries] = struct.unpack_from(order + "H", exif, start)
        for number in range(entries):
            tag, kind, count, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * number)
            if tag == 0x0112:
                return value if kind == 3 and count == 1 and 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
