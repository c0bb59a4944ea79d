"""What the models see is what the specification says, whatever the file was."""

import base64
import io
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from src.ml.preprocessing import (
    MAX_SEGMENTS,
    MAX_SIDE,
    ResizeMode,
    decode_base64,
    load_image,
    normalise,
    preprocess,
    resize,
)

from serving_common.errors import InvalidInput
from tests.images import encode, gif_header, picture, png_header, webp_header

MAX_PIXELS = 50_000_000
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# What Pillow has to say about damaged files is not ours to decide; in a service it is silenced on import.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def reference(data: bytes, *, crop: bool = False) -> np.ndarray:
    """The specification's steps one by one, in float64."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    if crop:
        width, height = image.size
        wide = width >= height
        width, height = (int(256 * width / height), 256) if wide else (256, int(256 * height / width))
        left, top = round((width - 224) / 2), round((height - 224) / 2)
        image = image.resize((width, height)).crop((left, top, left + 224, top + 224))
    else:
        image = image.resize((224, 224))
    return np.transpose((np.asarray(image, np.float64) / 255 - MEAN) / STD, (2, 0, 1))


def read(data: bytes) -> np.ndarray:
    return np.asarray(load_image(data, max_pixels=MAX_PIXELS))


def reason(data: bytes) -> str:
    with pytest.raises(InvalidInput) as refused:
        preprocess(data, resize_mode=ResizeMode.STRETCH, max_pixels=MAX_PIXELS)
    [error] = refused.value.errors
    assert error["field"] == "image_data"
    return error["reason"]


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (500, 375), (224, 224), (100, 300), (1, 1), (3, 7)])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_equals_the_reference(photo, file_format, size, mode):
    data = encode(Image.open(io.BytesIO(photo)).resize(size), file_format)
    pixels = preprocess(data, resize_mode=mode, max_pixels=MAX_PIXELS)

    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 224, 224)
    assert pixels.flags.c_contiguous
    assert np.abs(pixels - reference(data, crop=mode is ResizeMode.CROP)).max() < 1e-5


def test_every_value_of_a_pixel():
    """All 256, in each channel, against float64."""
    values = np.stack([np.arange(256, dtype=np.uint8)] * 3, -1)[None]
    exact = ((values / 255 - MEAN) / STD).transpose(2, 0, 1)

    assert np.abs(normalise(Image.fromarray(values)) - exact).max() < 1e-6


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "GIF"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP")],
)
def test_modes_without_loss(mode, file_format):
    image = picture(mode)
    data = encode(image, file_format, **({"lossless": True} if file_format == "WEBP" else {}))

    wanted = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read(data), wanted)
    if mode != "P" and file_format != "GIF":
        assert np.array_equal(wanted, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_kind(mode, progressive):
    found = read(encode(picture(mode), "JPEG", quality=95, progressive=progressive)).astype(int)

    assert np.abs(found - np.asarray(picture(mode).convert("RGB"))).mean() < 2


def test_sixteen_bits_of_grey_are_scaled():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    found = read(encode(Image.fromarray(values), "PNG"))

    assert np.array_equal(found[..., 0], values >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode):
    """Once through an alpha channel, and through a single transparent colour or palette entry."""
    options: dict[str, object] = {}
    if mode.endswith("A"):
        image = picture(mode)
        image.putalpha(0)
    else:
        image = Image.new(mode, (8, 8), 0)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}

    assert (read(encode(image, "PNG", **options)) == 255).all()


def test_a_transparent_gif_is_white():
    assert (read(encode(Image.new("P", (8, 8), 3), "GIF", transparency=3)) == 255).all()


def test_half_transparent_is_half_white():
    assert np.abs(read(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame(file_format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, object] = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)

    assert (read(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), file_format, exif=exif)

    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert np.array_equal(read(data), wanted)
    assert wanted.shape[:2] == ((60, 90) if orientation <= 4 else (90, 60))


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"])
def test_exif_data_that_make_no_sense_are_ignored(exif):
    assert read(encode(picture(), "JPEG", exif=exif)).shape == (60, 90, 3)


def test_a_picture_of_several_in_one_jpeg_is_its_first():
    data = encode(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])

    assert read(data).shape == (60, 90, 3)


@pytest.mark.parametrize(
    "data",
    [
        png_header(8_000, 6_251),
        png_header(2**31 - 1, 2**31 - 1),
        webp_header(16_383, 16_383),
        gif_header(60_000, 60_000),
    ],
)
def test_too_many_pixels_are_refused_before_decoding(data):
    assert reason(data).startswith("has too many pixels")


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_a_side_that_is_too_long(size):
    assert reason(png_header(*size)).startswith("is too large")


@pytest.mark.parametrize("size", [(MAX_SIDE, 1), (1, MAX_SIDE), (300, 1), (1, 2)])
@pytest.mark.parametrize("mode", ResizeMode)
def test_strips_are_images_too(size, mode):
    assert resize(Image.new("RGB", size), mode).size == (224, 224)


def test_a_jpeg_that_would_take_minutes_is_refused():
    """However small it is: each scan goes through the whole image, each piece of EXIF data copies those before it."""
    jpeg = encode(picture(), "JPEG", progressive=True)
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    piece = b"\xff\xe1" + struct.pack(">H", 9) + b"Exif\x00\x00x"

    read(jpeg[:2] + 100 * piece + jpeg[2:-2] + 100 * scan + jpeg[-2:])
    for slow in (jpeg[:-2] + MAX_SEGMENTS * scan + jpeg[-2:], jpeg[:2] + (MAX_SEGMENTS + 1) * piece + jpeg[2:]):
        assert "more than 500 scans" in reason(slow)


def test_as_many_pixels_as_are_allowed():
    data = encode(picture(), "PNG")

    assert load_image(data, max_pixels=60 * 90).size == (90, 60)
    with pytest.raises(InvalidInput, match="Invalid input") as refused:
        load_image(data, max_pixels=60 * 90 - 1)
    assert refused.value.errors[0]["reason"] == "has too many pixels: 90x60 are more than 5399"


@pytest.mark.parametrize("file_format", ["BMP", "TIFF", "ICO", "PPM", "TGA", "JPEG2000", "EPS", "PDF", "AVIF"])
def test_formats_that_are_not_on_the_list(file_format):
    assert reason(encode(picture(), file_format)) == "is not an image in a known format (JPEG, PNG, WEBP, GIF)"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_truncated_files(photo, file_format):
    whole = encode(Image.open(io.BytesIO(photo)).convert("RGB"), file_format)
    for share in (0.1, 0.5, 0.9):
        assert "image" in reason(whole[: int(len(whole) * share)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_bytes_are_read_or_refused(data):
    """Whole files with some bytes changed, cut out or put in: an array, or InvalidInput; nothing else."""
    good = data.draw(st.sampled_from(SEEDS))
    start = data.draw(st.integers(0, len(good)))
    length = data.draw(st.integers(0, 40))
    broken = good[:start] + data.draw(st.binary(max_size=40)) + good[start + length :]
    try:
        pixels = preprocess(broken, resize_mode=data.draw(st.sampled_from(ResizeMode)), max_pixels=1_000_000)
    except InvalidInput:
        return
    assert np.isfinite(pixels).all()
    assert pixels.shape == (3, 224, 224)


SEEDS = [
    encode(picture(mode), file_format, **options)
    for mode, file_format, options in [
        ("RGB", "JPEG", {}),
        ("CMYK", "JPEG", {"progressive": True}),
        ("P", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("P", "GIF", {}),
    ]
]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda text: text, id="plain"),
        pytest.param(lambda text: f"data:image/png;base64,{text}", id="data URL"),
        pytest.param(lambda text: f"DATA:;BASE64,{text}", id="shortest data URL"),
        pytest.param(lambda text: "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76)), id="lines"),
        pytest.param(lambda text: f" \t\n{text}\n", id="surrounded by whitespace"),
        pytest.param(lambda text: f" data:image/jpeg;charset=x; base64, {text[:9]} {text[9:]} ", id="both"),
    ],
)
def test_base64(wrap):
    data = bytes(range(256)) * 3

    assert decode_base64(wrap(base64.b64encode(data).decode())) == data


@given(st.binary(min_size=1))
def test_base64_of_any_bytes(data):
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,abcd", "is a data URL without ;base64"),
        ("data:", "is a data URL without ;base64"),
        ("abc", "is not valid Base64"),
        ("abcde", "is not valid Base64"),
        ("ab=cd", "is not valid Base64"),
        ("abcd====", "is not valid Base64"),
        ("abc_", "is not valid Base64"),
        ("<svg>", "is not valid Base64"),
        ("ünïcödé!", "is not valid Base64"),
        ("\ud800", "is not valid Base64"),
        ("\x00\x00\x00\x00", "is not valid Base64"),
    ],
)
def test_not_base64(text, reason):
    with pytest.raises(InvalidInput) as refused:
        decode_base64(text)
    assert refused.value.errors == [{"field": "image_data", "reason": reason}]
