"""From the request to a model's input: Base64, image, pixels of the model's size, normalised numbers."""

import contextlib
import io
import time
import warnings
from collections.abc import Callable, Iterator
from enum import StrEnum
from urllib.parse import unquote

import numpy as np
import pybase64
import structlog
from PIL import Image, ImageCms
from PIL.ImageFile import ImageFile as PillowFile

from serving_common.cards import Image as ImageForm
from serving_common.errors import CallerGone, InvalidInput, Unavailable
from serving_common.onnx import FloatArray
from src.ml import decoder
from src.ml.image_file import Damaged, ImageFile, Unreadable, exif_orientation, read_file

log = structlog.get_logger()

MARGIN = (8, 7)
"""With the resize mode crop an image is scaled to this much more than the model's size: 256 to 224, as in training."""
FILTER = Image.Resampling.BICUBIC
"""Pillow's default. It antialiases, so every source pixel contributes."""

MAX_SIDE = 65_535
"""JPEG's own limit. It also bounds the image between the steps of resizing, which has one side of the model's size."""
MAX_RATIO = 255
MAX_SCALED_PIXELS = MAX_RATIO * 256 * 256
"""Images with a larger aspect ratio are cropped first: scaled to a short side of 256 they could take gigabytes."""
MAX_IMAGE_PIXELS = 178_956_970
"""Pillow's own limit."""
BYTES_PER_PIXEL = 8
"""Memory for decoding and converting, for each pixel of the limit. Formats that need more are limited to fewer."""
CPU_S = 1.8
"""Seconds for decoding and resizing an image, as estimated from its header; more with a limit above 50,000,000."""
MAX_CPU_S = 3 * CPU_S
"""Seconds after which a decoding that takes longer than estimated is ended: there are slower machines."""
WEBP_PROCESS_S = 0.25
"""A WebP that is estimated to take longer is decoded in a process of its own, which costs 0.1 s and can be ended."""
RESIZE_NS = 10
CONVERT_NS = 10
STRIP_PIXELS = decoder.STRIP_PIXELS
"""Pixels that are decoded, converted or resized at a time: some milliseconds, after which the caller may have gone."""
MIN_BLOCK, MAX_BLOCK = 4_096, 65_536
"""Bytes of a file in COMPRESSIBLE that are decoded at a time: fewer where they are many pixels. Pillow's are 65,536."""
COMPRESSIBLE = ("GIF", "PNG")
"""Formats in which a thousand pixels may be one byte. (Besides, an arithmetic-coded JPEG cannot be read in parts.)"""

MAX_ESCAPES = 10_000
"""Most percent escapes in a data URL, besides those of `+`, `/`, `=` and whitespace."""

# Pillow warns about odd but readable files; on stderr that would break up the JSON log.
warnings.filterwarnings("ignore", module=r"PIL\.")

# EXIF's orientation, as the step that undoes it.
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Bytes of a pixel in Pillow's memory; 4 in the modes that are missing here.
MODE_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2}
# The mode that the colours of a profile have, by the name in the profile's header.
PROFILE_MODES = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
# The mode in which Pillow resizes an image with transparency, so that invisible pixels have no colour.
PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
SRGB = ImageCms.createProfile("sRGB")

Waits = Callable[[], bool]
"""Tells whether somebody still waits for the result. It is asked again and again, and from any thread."""


def always() -> bool:
    """For work that nobody can abandon."""
    return True


class ResizeMode(StrEnum):
    STRETCH = "stretch"
    CROP = "crop"


def decode_base64(text: str) -> bytes:
    """The decoded bytes. Whitespace, the prefix of a data URL, the URL-safe alphabet and no padding are allowed.

    Raises:
        InvalidInput: the text is empty, or not Base64.
    """
    text = text.lstrip()
    is_url = text[:5].lower() == "data:"
    if is_url:
        header, _, text = text.partition(",")
        if not header.replace(" ", "").lower().endswith(";base64"):
            raise _unreadable("is a data URL without ;base64")
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:  # only now, because few texts are anything but plain Base64
        try:
            data = pybase64.b64decode(_plain_base64(text, is_url), validate=True)
        except ValueError as exc:
            raise _unreadable("is not valid Base64") from exc
    if not data:
        raise _unreadable("is empty")
    return data


def _plain_base64(text: str, is_url: bool) -> str:
    if is_url and "%" in text:
        for escape, character in (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%0D", ""), ("%0A", ""), ("%20", "")):
            text = text.replace(escape, character).replace(escape.lower(), character)
        # unquote makes an object of each escape, which takes a hundred times the memory of its text.
        if text.count("%") > MAX_ESCAPES:
            raise ValueError
        text = unquote(text)
    text = "".join(text.split()).replace("-", "+").replace("_", "/")
    return text if "=" in text else text + "=" * (-len(text) % 4)


class _TimedFile(io.BytesIO):
    """A file whose reads fail once its thread has computed for too long, or nobody waits: Pillow decodes it in blocks.

    A WebP is decoded in one call, which only a process of its own could end: see WEBP_PROCESS_S.
    """

    def __init__(self, data: bytes, seconds: float, waits: Waits) -> None:
        super().__init__(data)
        self._seconds, self._started = seconds, time.thread_time()
        self._waits = waits

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() - self._started > self._seconds:
            raise Unreadable(f"takes too long to decode: more than {self._seconds:g} s")
        _require_waiting(self._waits)
        return super().read(size)


def _require_waiting(waits: Waits) -> None:
    if not waits():
        raise CallerGone("The caller has disconnected")


def _strips(length: int, across: int, waits: Waits) -> Iterator[tuple[int, int]]:
    """Start and end of each part of an image's rows or columns, of STRIP_PIXELS in all. Raises CallerGone."""
    step = max(1, STRIP_PIXELS // across)
    for start in range(0, length, step):
        _require_waiting(waits)
        yield start, min(start + step, length)


def load_image(data: bytes, *, max_pixels: int, waits: Waits = always) -> Image.Image:
    """The first frame, transparency on white.

    What is cheaper after resizing is left to `resize` and `to_srgb`, in `info`: EXIF's `orientation`, and the
    `icc_profile` or `gamma` of the colours.

    Returns: an image in mode RGB or L; if its colours are to be converted, also in CMYK, or with transparency in RGBA
        or LA.

    Raises:
        InvalidInput: the format is not in FORMATS; decoding would need too much memory or time, which is estimated from
            the header before anything is decoded; it takes more than MAX_CPU_S; or the image is damaged.
        Unavailable: it is an AVIF or a large WebP, and its process could not start, or was killed.
        CallerGone: nobody waits any more.
    """
    try:
        file = read_file(data)
        image = _open(file, max_pixels, waits)
        try:
            return _as_shown(_decoded(image, file, max_pixels, waits), file, waits)
        except (Unreadable, Unavailable, CallerGone):
            raise
        except Exception as exc:  # Pillow's decoders raise nearly any exception on a damaged file
            raise Damaged from exc
    except Unreadable as exc:
        raise _unreadable(str(exc)) from exc


def _scale(max_pixels: int) -> float:
    """By how much more CPU time an image may take than one of 50 megapixels."""
    return max(1, max_pixels / 50_000_000)


def _open(file: ImageFile, max_pixels: int, waits: Waits) -> PillowFile:
    """The image, not decoded yet. Raises Unreadable, CallerGone."""
    scale = _scale(max_pixels)
    try:
        image = Image.open(_TimedFile(file.data, MAX_CPU_S * scale, waits), formats=[file.format])
    except Image.DecompressionBombError as exc:
        raise Unreadable(f"has too many pixels: more than {max_pixels}") from exc
    except (Unreadable, CallerGone):
        raise
    except Exception as exc:
        if str(exc).startswith("Unsupported BMP"):
            raise Unreadable("is a kind of BMP that is not supported: export it as PNG") from exc
        raise Damaged from exc
    if file.format == "AVIF":
        file.orientation = exif_orientation(image.info.get("exif", b"").removeprefix(b"Exif\0\0"))
    for width, height in (image.size, file.canvas[2:] if file.canvas else image.size):
        if width * height > max_pixels:
            raise Unreadable(f"has too many pixels: {width}x{height} are more than {max_pixels}")
        if max(width, height) > MAX_SIDE:
            raise Unreadable(f"is too large: {width}x{height}, and no side may be longer than {MAX_SIDE}")
    pixels = image.width * image.height
    is_changed = image.mode not in ("L", "RGB") or image.has_transparency_data
    changes = is_changed + (file.canvas is not None)
    decoded = MODE_BYTES.get(image.mode, 4)
    memory = decoded + max(file.memory_per_pixel, 4 if is_changed else 0)
    if file.canvas is not None:
        memory += 4 * file.canvas[2] * file.canvas[3] / max(pixels, 1)
    if pixels * memory > max_pixels * BYTES_PER_PIXEL:
        raise Unreadable(
            f"needs too much memory to decode: {image.width}x{image.height} in {memory:.0f} bytes a pixel; "
            f"of such images, at most {int(max_pixels * BYTES_PER_PIXEL / memory)} pixels are accepted"
        )
    if image.mode == "RGB":  # one transparent colour, for which each pixel is compared
        changes += image.has_transparency_data
    seconds = file.cpu_s(*image.size) + pixels * (RESIZE_NS + CONVERT_NS * changes) / 1e9
    if seconds > CPU_S * scale:
        scans = f" in {file.scans} scans" if file.scans > 1 else ""
        raise Unreadable(f"takes too long to decode: {image.width}x{image.height}{scans}, {len(file.data)} bytes")
    return image


def _decoded(image: PillowFile, file: ImageFile, max_pixels: int, waits: Waits) -> Image.Image:
    """The image with its pixels. Raises Unavailable, CallerGone, and nearly any exception if the image is damaged."""
    if file.format != "AVIF" and (file.format != "WEBP" or file.cpu_s(*image.size) < WEBP_PROCESS_S):
        if file.format in COMPRESSIBLE:
            strips = max(1, image.width * image.height // STRIP_PIXELS)
            image.decodermaxblock = min(MAX_BLOCK, max(MIN_BLOCK, len(file.data) // strips))
        image.load()
        return image
    seconds = MAX_CPU_S * _scale(max_pixels)
    try:
        memory = max_pixels * BYTES_PER_PIXEL
        decoded = decoder.decode(file.data, file.format, memory=memory, seconds=seconds, waits=waits)
    except TimeoutError as exc:
        raise Unreadable(f"takes too long to decode: more than {seconds:g} s") from exc
    except MemoryError as exc:
        raise Unreadable("needs too much memory to decode") from exc
    except ValueError as exc:
        if file.format == "WEBP":  # whose header has said how much memory it needs
            raise Damaged from exc
        raise Unreadable("is a damaged or truncated image, or needs too much memory to decode") from exc
    except OSError as exc:
        _require_waiting(waits)  # it was killed if nobody does
        log.error("decoder_failed", format=file.format, reason=str(exc))
        reason = f"This {file.format} cannot be decoded now: its process could not start, or was killed"
        raise Unavailable(reason) from exc
    decoded.info = image.info
    return decoded


def _as_shown(image: Image.Image, file: ImageFile, waits: Waits) -> Image.Image:
    profile = file.profile or image.info.get("icc_profile")
    if profile and not _fits(profile, image.mode):
        profile = None
    # Colours are blended as they are shown: those to be converted meet the white afterwards.
    is_converted = bool(profile or file.gamma)
    if is_converted and image.mode == "P" and image.has_transparency_data:
        image = image.convert("RGBA")
    shown = image if is_converted and image.mode in ("CMYK", "LA", "RGBA") else _on_white(image, waits)
    if file.canvas is not None:
        left, top, *size = file.canvas
        canvas = Image.new(shown.mode, (size[0], size[1]), "white")
        canvas.paste(shown, (left, top))
        shown = canvas
    shown.info = {"orientation": file.orientation, "icc_profile": profile, "gamma": file.gamma}
    return shown


def _fits(profile: bytes, mode: str) -> bool:
    """Whether it is a profile of such colours. Browsers ignore others, too."""
    colours = PROFILE_MODES.get(profile[16:20])
    if mode == "CMYK":
        return colours == "CMYK"
    return colours == "RGB" or (colours == "L" and mode.startswith(("1", "I", "L")))


def _on_white(image: Image.Image, waits: Waits = always) -> Image.Image:
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        return image
    is_grey = image.mode.startswith(("1", "I")) and (image.mode != "1" or not image.has_transparency_data)
    white = Image.new("L" if is_grey else "RGB", image.size, "white")
    for top, bottom in _strips(image.height, image.width, waits):
        strip = image.crop((0, top, image.width, bottom))
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
            values = np.asarray(strip)
            grey = ((values.astype(np.uint32) * 255 + 32_895) >> 16).astype(np.uint8)  # values / 257, rounded
            if (transparent := image.info.get("transparency")) is not None:
                grey[values == transparent] = 255
            white.paste(Image.fromarray(grey), (0, top))
        elif image.has_transparency_data:
            visible = strip.convert("RGBA")
            white.paste(visible, (0, top), mask=visible)
        else:
            white.paste(strip.convert(white.mode), (0, top))
    return white


def to_srgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB on white, converted from the profile or gamma in its `info`. An invalid one is ignored."""
    shown = image.convert("RGB")
    if profile := image.info.get("icc_profile"):
        mode = PROFILE_MODES[profile[16:20]]
        # Not optimised: building a table for all colours takes longer than converting 224x224 pixels.
        flags = ImageCms.Flags.NOOPTIMIZE
        with contextlib.suppress(ImageCms.PyCMSError, ValueError, OSError):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            shown = ImageCms.buildTransform(source, SRGB, mode, "RGB", flags=flags).apply(image.convert(mode))
    elif gamma := image.info.get("gamma"):
        shown = shown.point(_srgb_values(gamma) * 3)
    if image.mode in ("LA", "RGBA"):
        shown.putalpha(image.getchannel("A"))
        return _on_white(shown)
    return shown


def _srgb_values(gamma: float) -> list[int]:
    """For each of 256 values whose light is value ** (1 / gamma), the value of sRGB for the same light."""
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    values = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return [round(float(value)) for value in 255 * values]


def resize(image: Image.Image, form: ImageForm, waits: Waits = always) -> Image.Image:
    """Of the model's size, upright: the whole image stretched, or its centre after scaling it to MARGIN times that.

    Raises CallerGone.
    """
    height, width = form.size
    # The image is scaled as it is stored, and turned afterwards.
    is_on_its_side = image.info.get("orientation", 1) > 4
    size = (height, width) if is_on_its_side else (width, height)
    if form.resize == "stretch":
        return _scale_upright(image, size, waits)
    target = (size[0] * MARGIN[0] // MARGIN[1], size[1] * MARGIN[0] // MARGIN[1])
    short = min(image.size)
    ratio = min(MAX_RATIO, max(2, MAX_SCALED_PIXELS // (target[0] * target[1])))
    if max(image.size) > ratio * short:
        middle = (min(image.width, ratio * short), min(image.height, ratio * short))
        image = image.crop(_centre(image.size, middle))
    if image.width * target[1] <= image.height * target[0]:  # the width is what limits the scale
        scaled = (target[0], image.height * target[0] // image.width)
    else:
        scaled = (image.width * target[1] // image.height, target[1])
    whole = _scale_upright(image, scaled, waits)
    return whole.crop(_centre(whole.size, (width, height)))


def _scale_upright(image: Image.Image, size: tuple[int, int], waits: Waits) -> Image.Image:
    """The same pixels as of an image that is turned first, which would take twice the time and memory."""
    orientation = image.info.get("orientation", 1)
    is_on_its_side = orientation > 4
    mode = image.mode
    if is_on_its_side or image.width * image.height > STRIP_PIXELS:
        turned, wanted = (image.size[::-1], size[::-1]) if is_on_its_side else (image.size, size)
        if _scales_height_first(turned, wanted) is is_on_its_side:
            image = _scale_width(image, size[0], waits)
        else:
            image = _scale_height(image, size[1], waits)
    scaled = _in_mode(image.resize(size, FILTER), mode)
    return scaled.transpose(TRANSPOSE[orientation]) if orientation != 1 else scaled


def _scales_height_first(size: tuple[int, int], target: tuple[int, int]) -> bool:
    """Pillow's own order. With the other, values are rounded otherwise, and some sizes take longer."""
    (width, height), (target_width, target_height) = size, target
    return height > target_height and height - target_height > 2 * (width - target_width)


def _scale_width(image: Image.Image, width: int, waits: Waits) -> Image.Image:
    """The first and longer half of resizing an image, in strips, between which it can be ended.

    Returns: an image of its height; with transparency, in the mode of PREMULTIPLIED.
    """
    scaled = Image.new(PREMULTIPLIED.get(image.mode, image.mode), (width, image.height))
    scaled.info = image.info
    for top, bottom in _strips(image.height, image.width, waits):
        strip = _in_mode(image.crop((0, top, image.width, bottom)), scaled.mode)
        scaled.paste(strip.resize((width, bottom - top), FILTER), (0, top))
    return scaled


def _scale_height(image: Image.Image, height: int, waits: Waits) -> Image.Image:
    """The same as `_scale_width` for the height."""
    scaled = Image.new(PREMULTIPLIED.get(image.mode, image.mode), (image.width, height))
    scaled.info = image.info
    for left, right in _strips(image.width, image.height, waits):
        strip = _in_mode(image.crop((left, 0, right, image.height)), scaled.mode)
        scaled.paste(strip.resize((right - left, height), FILTER), (left, 0))
    return scaled


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image itself if it has the mode already, where `convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _centre(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (round((whole - target) / 2) for whole, target in zip(size, part, strict=True))
    return left, top, left + part[0], top + part[1]


def normalise(image: Image.Image, form: ImageForm) -> FloatArray:
    """An RGB image as float32, (3, height, width) or in the layout NHWC (height, width, 3).

    Each channel's values become (value / 255 - mean) / std.
    """
    mean, std = np.array(form.mean), np.array(form.std)
    scale, offset = (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)
    values = np.asarray(image)
    if form.layout == "NCHW":
        values, scale, offset = values.transpose(2, 0, 1), scale[:, None, None], offset[:, None, None]
    pixels: FloatArray = np.multiply(values, scale, dtype=np.float32, order="C")
    pixels += offset
    return pixels


def preprocess(data: bytes, form: ImageForm, *, max_pixels: int, waits: Waits = always) -> FloatArray:
    """An image file as the input of a model that takes images of this form, without the batch axis. Blocks.

    Raises:
        InvalidInput: the image cannot be decoded; the error says why.
        Unavailable: not now; see `load_image`.
        CallerGone: nobody waits any more. What had been started ends within some milliseconds.
    """
    image = resize(load_image(data, max_pixels=max_pixels, waits=waits), form, waits)
    return normalise(to_srgb(image), form)


def _unreadable(reason: str) -> InvalidInput:
    return InvalidInput("Invalid input", [{"field": "image_data", "reason": reason}])
