"""From what a client sends to what the models take: Base64, image, 224x224 pixels, normalised numbers."""

import contextlib
import io
import warnings
from enum import StrEnum

import numpy as np
import pybase64
from PIL import Image, ImageOps, UnidentifiedImageError

from serving_common.errors import InvalidInput
from serving_common.onnx import FloatArray

SIZE = 224
SHORT_SIDE = 256
"""Of the whole image in RESIZE_MODE=crop, whose centre of 224x224 the model then sees."""
FILTER = Image.Resampling.BICUBIC
"""Pillow's default. It antialiases: every pixel of the image counts, however small the result."""
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_SIDE = 65_535
"""What JPEG allows. Pillow resizes first in width, so a tall image goes through one of 224 x its height."""
MAX_RATIO = 255
"""A strip that is longer is cut before its short side is brought to 256, which could make it gigabytes long."""
MAX_IMAGE_PIXELS = 178_956_970
"""Where Pillow itself refuses."""
MAX_SEGMENTS = 500
"""Scans of a JPEG, and pieces of its EXIF data. Ten scans are usual, and 7 MB have room for 90,000, each of which takes
libjpeg through the whole image again; or for 300,000 pieces, with each of which Pillow copies those before it."""

SCALE = (1 / (255 * STD)).astype(np.float32)
OFFSET = (-MEAN / STD).astype(np.float32)

# Remarks about files that are odd but readable; on stderr they would stand between the lines of JSON.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ResizeMode(StrEnum):
    STRETCH = "stretch"
    CROP = "crop"


def decode_base64(text: str) -> bytes:
    """The bytes of an image; a data URL's prefix and whitespace are allowed.

    Raises:
        InvalidInput: it is empty, or not Base64.
    """
    text = text.lstrip()
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.replace(" ", "").lower().endswith(";base64"):
            raise _unreadable("is a data URL without ;base64")
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:  # most have no whitespace, so it is looked for only now
        try:
            data = pybase64.b64decode("".join(text.split()), validate=True)
        except ValueError as exc:
            raise _unreadable("is not valid Base64") from exc
    if not data:
        raise _unreadable("is empty")
    return data


def load_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The picture that a viewer would show, mode RGB: the first frame, upright, on white where it is transparent.

    Raises:
        InvalidInput: the format is none of FORMATS, the image is too large (told from its header, before it is
            decoded), would take minutes, or is damaged.
    """
    if data.startswith(b"\xff\xd8") and max(data.count(b"\xff\xda"), data.count(b"\xff\xe1")) > MAX_SEGMENTS:
        raise _unreadable(f"has more than {MAX_SEGMENTS} scans, or pieces of EXIF data")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as exc:
        raise _unreadable(f"has too many pixels: more than {max_pixels}") from exc
    except UnidentifiedImageError as exc:
        raise _unreadable(f"is not an image in a known format ({', '.join(FORMATS)})") from exc
    except Exception as exc:
        raise _unreadable("is a damaged or truncated image") from exc
    width, height = image.size
    if width * height > max_pixels:
        raise _unreadable(f"has too many pixels: {width}x{height} are more than {max_pixels}")
    if max(width, height) > MAX_SIDE:
        raise _unreadable(f"is too large: {width}x{height}, and no side may be longer than {MAX_SIDE}")
    try:
        image.load()
        with contextlib.suppress(Exception):  # EXIF data that make no sense are no reason to refuse the image
            ImageOps.exif_transpose(image, in_place=True)
        return _on_white(image)
    except Exception as exc:  # Pillow's decoders raise nearly everything when a file is damaged
        raise _unreadable("is a damaged or truncated image") from exc


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would cut off at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    visible = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(visible, mask=visible)
    return white


def resize(image: Image.Image, mode: ResizeMode) -> Image.Image:
    """224x224 pixels: the whole image stretched, or the centre of it once its short side is 256."""
    if mode is ResizeMode.STRETCH:
        return image.resize((SIZE, SIZE), FILTER)
    short = min(image.size)
    if max(image.size) > MAX_RATIO * short:
        middle = (min(image.width, MAX_RATIO * short), min(image.height, MAX_RATIO * short))
        image = image.crop(_centre(image.size, middle))
    whole = image.resize((image.width * SHORT_SIDE // short, image.height * SHORT_SIDE // short), FILTER)
    return whole.crop(_centre(whole.size, (SIZE, SIZE)))


def _centre(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (round((whole - wanted) / 2) for whole, wanted in zip(size, part, strict=True))
    return left, top, left + part[0], top + part[1]


def normalise(image: Image.Image) -> FloatArray:
    """An RGB image as the models take it: float32 (3, height, width), (value / 255 - mean) / std per channel.

    Source: the preprocessing of MobileNetV2 and ResNet50 in the ONNX Model Zoo.
    """
    channels = np.asarray(image).transpose(2, 0, 1)
    pixels: FloatArray = np.multiply(channels, SCALE[:, None, None], dtype=np.float32, order="C")
    pixels += OFFSET[:, None, None]
    return pixels


def preprocess(data: bytes, *, resize_mode: ResizeMode, max_pixels: int) -> FloatArray:
    """An image file as the models take it: float32 (3, 224, 224), RGB, about -2.1 to 2.7. Blocks while it decodes.

    Raises:
        InvalidInput: it is no image that we can read; the reason says why.
    """
    return normalise(resize(load_image(data, max_pixels=max_pixels), resize_mode))


def _unreadable(reason: str) -> InvalidInput:
    return InvalidInput("Invalid input", [{"field": "image_data", "reason": reason}])
