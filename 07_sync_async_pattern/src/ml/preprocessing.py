"""From the request to the models' input: Base64, image, 224x224 pixels, normalised numbers."""

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
"""RESIZE_MODE=crop scales the image's short side to this, then takes the centre of 224x224."""
FILTER = Image.Resampling.BICUBIC
"""Pillow's default. It antialiases, so every source pixel contributes."""
MEAN = np.array([0.485, 0.456, 0.406])
STD = np.array([0.229, 0.224, 0.225])

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
MAX_SIDE = 65_535
"""JPEG's own limit. Pillow resizes the width first, so a tall image passes through one of 224 x its height."""
MAX_RATIO = 255
"""Images with a larger aspect ratio are cropped first: scaled to a short side of 256 they could take gigabytes."""
MAX_IMAGE_PIXELS = 178_956_970
"""Pillow's own limit."""
MAX_SEGMENTS = 500
"""Most scans, and EXIF segments, of a JPEG. Ten scans are usual; 7 MB can hold 90,000, and libjpeg goes through the
whole image for each, or 300,000 EXIF segments, and Pillow copies all earlier ones for each."""

SCALE = (1 / (255 * STD)).astype(np.float32)
OFFSET = (-MEAN / STD).astype(np.float32)

# Pillow warns about odd but readable files; on stderr that would break up the JSON log.
warnings.filterwarnings("ignore", module=r"PIL\.")


class ResizeMode(StrEnum):
    STRETCH = "stretch"
    CROP = "crop"


def decode_base64(text: str) -> bytes:
    """The decoded bytes; whitespace and the prefix of a data URL are allowed.

    Raises:
        InvalidInput: the text is empty, or not Base64.
    """
    text = text.lstrip()
    if text[:5].lower() == "data:":
        header, _, text = text.partition(",")
        if not header.replace(" ", "").lower().endswith(";base64"):
            raise _unreadable("is a data URL without ;base64")
    try:
        data = pybase64.b64decode(text, validate=True)
    except ValueError:  # strip whitespace only now, because few texts have any
        try:
            data = pybase64.b64decode("".join(text.split()), validate=True)
        except ValueError as exc:
            raise _unreadable("is not valid Base64") from exc
    if not data:
        raise _unreadable("is empty")
    return data


def load_image(data: bytes, *, max_pixels: int) -> Image.Image:
    """The image as a viewer shows it, in mode RGB: first frame, EXIF orientation applied, transparency on white.

    Raises:
        InvalidInput: the format is not in FORMATS; the image is too large, which is checked on its header before
            anything is decoded; it would take minutes to decode; or it is damaged.
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
        with contextlib.suppress(Exception):  # malformed EXIF data do not make the image unreadable
            ImageOps.exif_transpose(image, in_place=True)
        return _on_white(image)
    except Exception as exc:  # Pillow's decoders raise nearly any exception on a damaged file
        raise _unreadable("is a damaged or truncated image") from exc


def _on_white(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip at 255 instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    visible = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(visible, mask=visible)
    return white


def resize(image: Image.Image, mode: ResizeMode) -> Image.Image:
    """224x224 pixels: the whole image stretched, or its centre after scaling the short side to 256."""
    if mode is ResizeMode.STRETCH:
        return image.resize((SIZE, SIZE), FILTER)
    short = min(image.size)
    if max(image.size) > MAX_RATIO * short:
        middle = (min(image.width, MAX_RATIO * short), min(image.height, MAX_RATIO * short))
        image = image.crop(_centre(image.size, middle))
    whole = image.resize((image.width * SHORT_SIDE // short, image.height * SHORT_SIDE // short), FILTER)
    return whole.crop(_centre(whole.size, (SIZE, SIZE)))


def _centre(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    left, top = (round((whole - target) / 2) for whole, target in zip(size, part, strict=True))
    return left, top, left + part[0], top + part[1]


def normalise(image: Image.Image) -> FloatArray:
    """An RGB image as float32 (3, height, width): (value / 255 - mean) / std per channel.

    Source: the preprocessing of MobileNetV2 and ResNet50 in the ONNX Model Zoo.
    """
    channels = np.asarray(image).transpose(2, 0, 1)
    pixels: FloatArray = np.multiply(channels, SCALE[:, None, None], dtype=np.float32, order="C")
    pixels += OFFSET[:, None, None]
    return pixels


def preprocess(data: bytes, *, resize_mode: ResizeMode, max_pixels: int) -> FloatArray:
    """An image file as the models' input: float32 (3, 224, 224), RGB, about -2.1 to 2.7. Blocks while decoding.

    Raises:
        InvalidInput: the image cannot be decoded; the error says why.
    """
    return normalise(resize(load_image(data, max_pixels=max_pixels), resize_mode))


def _unreadable(reason: str) -> InvalidInput:
    return InvalidInput("Invalid input", [{"field": "image_data", "reason": reason}])
