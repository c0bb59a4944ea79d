"""The models' input is as specified, whatever the image file."""

import base64
import io
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from functools import partial
from itertools import count, repeat
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from serving_common.errors import CallerGone, InvalidInput, Unavailable
from src.ml import decoder, preprocessing
from src.ml.image_cards import imagenet_form
from src.ml.image_file import Unreadable, read_file
from src.ml.preprocessing import (
    MAX_SIDE,
    ResizeMode,
    decode_base64,
    load_image,
    normalise,
    preprocess,
    resize,
)
from tests.corpus import noise
from tests.images import chunk, encode, gif_header, insert_chunk, picture, png_header, webp_header

MAX_PIXELS = 50_000_000
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Pillow warns about damaged files; in a service its warnings are silenced on import.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def reference(data: bytes, *, crop: bool = False) -> np.ndarray:
    """The specified steps one by one, in float64."""
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
    return np.asarray(load_image(data, max_pixels=MAX_PIXELS).convert("RGB"))


def reason(data: bytes) -> str:
    with pytest.raises(InvalidInput) as raised:
        preprocess(data, imagenet_form(ResizeMode.STRETCH), max_pixels=MAX_PIXELS)
    [error] = raised.value.errors
    assert error["field"] == "image_data"
    return error["reason"]


@pytest.mark.parametrize("mode", ResizeMode)
@pytest.mark.parametrize(
    "size", [(640, 480), (480, 640), (500, 375), (224, 224), (100, 300), (1, 1), (3, 7), (1_400, 900)]
)
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_preprocessing_equals_float64_reference(photo, file_format, size, mode):
    data = encode(Image.open(io.BytesIO(photo)).resize(size), file_format)
    pixels = preprocess(data, imagenet_form(mode), max_pixels=MAX_PIXELS)

    assert pixels.dtype == np.float32
    assert pixels.shape == (3, 224, 224)
    assert pixels.flags.c_contiguous
    assert np.abs(pixels - reference(data, crop=mode is ResizeMode.CROP)).max() < 1e-5


def test_every_pixel_value_is_normalised_exactly():
    """All 256 values in each channel, compared with float64."""
    values = np.stack([np.arange(256, dtype=np.uint8)] * 3, -1)[None]
    exact = ((values / 255 - MEAN) / STD).transpose(2, 0, 1)

    assert np.abs(normalise(Image.fromarray(values), imagenet_form()) - exact).max() < 1e-6


@pytest.mark.parametrize(
    ("mode", "file_format"),
    [("RGB", "PNG"), ("RGB", "GIF"), ("L", "PNG"), ("1", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP")],
)
def test_lossless_modes_convert_to_exact_rgb(mode, file_format):
    image = picture(mode)
    data = encode(image, file_format, **({"lossless": True} if file_format == "WEBP" else {}))

    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read(data), expected)
    if mode != "P" and file_format != "GIF":
        assert np.array_equal(expected, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_modes_and_progressive_decode(mode, progressive):
    pixels = read(encode(picture(mode), "JPEG", quality=95, progressive=progressive)).astype(int)

    assert np.abs(pixels - np.asarray(picture(mode).convert("RGB"))).mean() < 2


def test_16_bit_grey_is_scaled():
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    pixels = read(encode(Image.fromarray(values), "PNG"))

    assert np.array_equal(pixels[..., 0], np.rint(values / 257))


def test_16_bit_grey_transparency_becomes_white():
    values = np.full((8, 8), 40_000, np.uint16)
    values[:4] = 1000
    data = insert_chunk(encode(Image.fromarray(values), "PNG"), b"tRNS", struct.pack(">H", 1000), before=b"IDAT")
    pixels = read(data)

    assert (pixels[:4] == 255).all()
    assert (pixels[4:] == 156).all()  # 40000 / 257


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparency_becomes_white(mode):
    """Through an alpha channel, or through one transparent colour or palette entry."""
    options: dict[str, object] = {}
    if mode.endswith("A"):
        image = picture(mode)
        image.putalpha(0)
    else:
        image = Image.new(mode, (8, 8), 0)
        options = {"transparency": (0, 0, 0) if mode == "RGB" else 0}

    assert (read(encode(image, "PNG", **options)) == 255).all()


def test_transparent_gif_becomes_white():
    assert (read(encode(Image.new("P", (8, 8), 3), "GIF", transparency=3)) == 255).all()


def test_half_transparency_blends_with_white():
    assert np.abs(read(encode(Image.new("RGBA", (4, 4), (0, 0, 0, 128)), "PNG")).astype(int) - 127).max() <= 1


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_animation_uses_first_frame(file_format):
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
    options: dict[str, object] = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)

    assert (read(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(orientation, file_format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), file_format, exif=exif)

    for mode in ResizeMode:
        pixels = preprocess(data, imagenet_form(mode), max_pixels=MAX_PIXELS)
        assert np.abs(pixels - reference(data, crop=mode is ResizeMode.CROP)).max() < 1e-5


@pytest.mark.parametrize("exif", [b"Exif\x00\x00garbage", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00"])
def test_malformed_exif_is_ignored(exif):
    assert read(encode(picture(), "JPEG", exif=exif)).shape == (60, 90, 3)


def test_multi_picture_jpeg_uses_first_image():
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
def test_too_many_pixels_are_rejected_before_decoding(data):
    assert reason(data).startswith("has too many pixels")


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1)])
def test_too_long_side_is_rejected(size):
    assert reason(png_header(*size)).startswith("is too large")


@pytest.mark.parametrize("size", [(MAX_SIDE, 1), (1, MAX_SIDE), (300, 1), (1, 2)])
@pytest.mark.parametrize("mode", ResizeMode)
def test_extreme_aspect_ratios_are_resized(size, mode):
    assert resize(Image.new("RGB", size), imagenet_form(mode)).size == (224, 224)


def test_pixel_limit_is_inclusive():
    data = encode(picture(), "PNG")

    assert load_image(data, max_pixels=60 * 90).size == (90, 60)
    with pytest.raises(InvalidInput, match="Invalid input") as raised:
        load_image(data, max_pixels=60 * 90 - 1)
    assert raised.value.errors[0]["reason"] == "has too many pixels: 90x60 are more than 5399"


@pytest.mark.parametrize("file_format", ["PPM", "TGA", "EPS", "PDF"])
def test_unknown_formats_are_rejected(file_format):
    expected = "is not an image in a known format (JPEG, PNG, WEBP, GIF, BMP, AVIF)"
    assert reason(encode(picture(), file_format)) == expected


@pytest.mark.parametrize(("file_format", "name"), [("TIFF", "a TIFF"), ("ICO", "an ICO"), ("JPEG2000", "a JPEG 2000")])
def test_unsupported_formats_are_rejected_by_name(file_format, name):
    assert reason(encode(picture(), file_format)).startswith(f"is {name} file, which is not supported")


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"mif1"])
def test_heic_is_rejected_with_advice(brand):
    box = b"ftyp" + brand + bytes(4) + b"mif1heic"
    assert reason(struct.pack(">I", len(box) + 4) + box + bytes(100)) == (
        "is a HEIC photo, which is not supported: export it as JPEG"
    )


def test_12_bit_jpeg_is_rejected_by_name():
    jpeg = bytearray(encode(picture(), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 4] = 12
    assert reason(bytes(jpeg)) == "is a 12-bit JPEG; only JPEGs of 8 bits are supported"


def test_lossless_jpeg_is_rejected_by_name():
    jpeg = encode(picture(), "JPEG").replace(b"\xff\xc0", b"\xff\xc3", 1)
    assert reason(jpeg) == "is a lossless JPEG, which is not supported"


def test_png_with_large_text_is_decoded():
    """Pillow refuses more than 1 MB of text; a viewer does not look at it."""
    text = b"Comment\0\0" + zlib.compress(bytes(2_000_000))
    data = insert_chunk(encode(picture(), "PNG"), b"zTXt", text, before=b"IDAT")

    assert np.array_equal(read(data), np.asarray(picture()))


@pytest.mark.parametrize("name", [b"tEXt", b"gAMA", b"iCCP", b"eXIf", b"tRNS"])
@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_wrong_checksum_of_ancillary_chunk_is_ignored(name, before):
    data = insert_chunk(encode(picture(), "PNG"), name, b"abcd", before=before, checksum=7)

    assert np.array_equal(read(data), np.asarray(picture()))


def test_png_without_its_end_is_decoded():
    assert np.array_equal(read(encode(picture(), "PNG")[:-12]), np.asarray(picture()))


@pytest.mark.parametrize("small", [False, True])
def test_hidden_default_image_gives_way_to_first_frame(small):
    frames = [Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")]
    data = encode(Image.new("RGB", (20, 10), "lime"), "PNG", save_all=True, append_images=frames, default_image=True)
    expected = np.full((10, 20, 3), (255, 0, 0))
    if small:  # a frame of 20x5 at the bottom of the canvas
        at = data.index(b"fcTL")
        frame = encode(Image.new("RGB", (20, 5), "red"), "PNG")
        control = data[at + 4 : at + 8] + struct.pack(">4I", 20, 5, 0, 5) + data[at + 24 : at + 30]
        still = encode(Image.new("RGB", (20, 10), "lime"), "PNG")
        still = insert_chunk(still, b"acTL", struct.pack(">2I", 1, 0), before=b"IDAT")
        still = insert_chunk(still, b"fcTL", control, before=b"IEND")
        pixels = frame[frame.index(b"IDAT") + 4 : frame.index(b"IEND") - 8]
        data = insert_chunk(still, b"fdAT", bytes(4) + pixels, before=b"IEND")
        expected[:5] = 255

    assert np.array_equal(read(data), expected)


@pytest.mark.parametrize("left", [0, 5])
def test_what_a_gif_leaves_out_is_transparent(left):
    data = bytearray(encode(Image.new("RGB", (10, 4), "red"), "GIF"))
    at = data.rindex(b",")
    data[6:10] = struct.pack("<2H", 20, 10)
    data[at + 1 : at + 5] = struct.pack("<2H", left, 6)
    expected = np.full((10, 20, 3), 255)
    expected[6:, left : left + 10] = (255, 0, 0)

    assert np.array_equal(read(bytes(data)), expected)


def test_gif_whose_image_is_larger_than_itself_is_decoded():
    data = bytearray(encode(Image.new("RGB", (10, 4), "red"), "GIF"))
    data[6:10] = struct.pack("<2H", 8, 4)

    assert (read(bytes(data)) == (255, 0, 0)).all()


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_transparent_grey_becomes_white(depth):
    highest = 2**depth - 1
    values = bytes([0, highest])
    pixels = b"".join(b"\0" + (value * (255 // highest)).to_bytes() for value in values)  # two rows, a byte each
    header = struct.pack(">2I5B", 8 // depth, 2, depth, 0, 0, 0, 0)

    def shown(transparent):
        chunks = [(b"IHDR", header), (b"tRNS", transparent), (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")]
        return read(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*each) for each in chunks))

    assert (shown(bytes([0, 0])) == 255).all()
    assert np.array_equal(shown(bytes([0, highest]))[:, 0, 0], [0, 255])


def test_bytes_between_segments_of_a_jpeg_are_ignored():
    """As in a file of Photoshop's whose segment is longer than it says."""
    data = encode(picture(), "JPEG")
    segment = b"\xff\xed" + (4).to_bytes(2) + b"ab" + b"more than it says"

    assert np.array_equal(read(data[:2] + segment + data[2:]), read(data))


def test_avif_is_decoded():
    assert np.abs(read(encode(picture(), "AVIF", quality=95)).astype(int) - np.asarray(picture())).mean() < 3


@pytest.mark.parametrize(("at", "value"), [(14, 16), (28, 5), (30, 4), (30, 6)])
def test_unsupported_bmp_is_rejected_by_name(at, value):
    data = bytearray(encode(picture(), "BMP"))
    data[at] = value

    assert reason(bytes(data)) == "is a kind of BMP that is not supported: export it as PNG"


@pytest.mark.parametrize("mode", ["RGB", "P", "L", "1", "RGBA"])
def test_bmp_is_decoded(mode):
    assert np.array_equal(read(encode(picture(mode), "BMP")), np.asarray(picture(mode).convert("RGB")))


NO_ALPHA = ("JPEG", "RGBA")


def swapped_profile() -> bytes:
    """An ICC profile that calls red what sRGB calls green, and the reverse: its effect cannot be overlooked."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {profile[at : at + 4]: at for at in range(132, 132 + 12 * profile[131], 12)}
    swapped = bytearray(profile)
    for one, other in ((b"rXYZ", b"gXYZ"), (b"gXYZ", b"rXYZ")):
        swapped[tags[one] + 4 : tags[one] + 12] = profile[tags[other] + 4 : tags[other] + 12]
    return bytes(swapped)


@pytest.mark.parametrize(
    ("file_format", "mode"),
    [(name, mode) for name in ("JPEG", "PNG", "WEBP", "AVIF") for mode in ("RGB", "RGBA") if (name, mode) != NO_ALPHA],
)
def test_colours_are_converted_from_embedded_profile(file_format, mode):
    quality = {} if file_format == "PNG" else {"quality": 100}
    image = Image.new(mode, (50, 50), (200, 40, 90) if mode == "RGB" else (200, 40, 90, 255))
    with_profile = preprocess(
        encode(image, file_format, icc_profile=swapped_profile(), **quality),
        imagenet_form(),
        max_pixels=MAX_PIXELS,
    )
    expected = reference(encode(Image.new("RGB", (50, 50), (40, 200, 90)), "PNG"))

    assert np.abs(with_profile - expected).max() < 0.1


def linear_profile(space: bytes) -> bytes:
    """An ICC profile of sRGB's colours, or of grey, whose values are in proportion to the light."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[16:20] = space
    for at in range(132, 132 + 12 * profile[131], 12):
        if profile[at + 1 : at + 4] == b"TRC":
            start = int.from_bytes(profile[at + 4 : at + 8])
            profile[start : start + 12] = b"curv" + bytes(8)
            if space == b"GRAY" and profile[at : at + 1] == b"r":
                profile[at : at + 1] = b"k"
    return bytes(profile)


def shown_colour(image: Image.Image, file_format: str, **options) -> list[int]:
    return colour_of(encode(image, file_format, **options))


def colour_of(data: bytes) -> list[int]:
    pixels = preprocess(data, imagenet_form(), max_pixels=MAX_PIXELS)
    return [round(float(value)) for value in (pixels[:, 112, 112] * STD + MEAN) * 255]


def srgb(linear: int) -> float:
    return float(255 * (1.055 * (linear / 255) ** (1 / 2.4) - 0.055))


@pytest.mark.parametrize(("file_format", "mode"), [("JPEG", "L"), ("PNG", "L"), ("PNG", "LA"), ("PNG", "I;16")])
def test_grey_is_converted_from_embedded_profile(file_format, mode):
    values: dict[str, float | tuple[float, ...]] = {"L": 128, "LA": (128, 255), "I;16": 128 * 257}
    image = Image.new(mode, (50, 50), values[mode])

    assert shown_colour(image, file_format, icc_profile=linear_profile(b"GRAY")) == [round(srgb(128))] * 3


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_profile_of_grey_leaves_colours_as_they_are(file_format):
    quality = {"lossless": True} if file_format == "WEBP" else {"quality": 100}
    image = Image.new("RGB", (50, 50), (200, 40, 90))

    assert shown_colour(image, file_format, icc_profile=linear_profile(b"GRAY"), **quality) == pytest.approx(
        (200, 40, 90), abs=1
    )


@pytest.mark.parametrize(
    ("file_format", "mode"), [("PNG", "RGBA"), ("PNG", "P"), ("PNG", "LA"), ("WEBP", "RGBA"), ("AVIF", "RGBA")]
)
def test_transparency_is_blended_after_the_conversion_from_a_profile(file_format, mode):
    """As in a browser; the other way round, it would be lighter by 20 of 255."""
    image = Image.new("LA", (50, 50), (30, 128)) if mode == "LA" else Image.new("RGBA", (50, 50), (30, 30, 30, 128))
    quality = {"quality": 100} if file_format == "AVIF" else {"lossless": True}
    profile = linear_profile(b"GRAY" if mode == "LA" else b"RGB ")
    if mode == "P":
        image = image.quantize(2)
    expected = srgb(30) * 128 / 255 + 127

    assert shown_colour(image, file_format, icc_profile=profile, **quality) == pytest.approx([expected] * 3, abs=2)


def test_transparency_stays_with_an_invalid_profile():
    image = Image.new("RGBA", (50, 50), (30, 30, 30, 128))
    broken = linear_profile(b"RGB ")[:132] + bytes(100)

    assert shown_colour(image, "PNG", icc_profile=broken) == shown_colour(image, "PNG")


def test_png_is_shown_with_its_gamma():
    """As its specification has it: unless there is a profile, or a chunk that says sRGB."""
    plain = encode(Image.new("RGBA", (50, 50), (30, 30, 30, 128)), "PNG")
    linear = insert_chunk(plain, b"gAMA", (100_000).to_bytes(4), before=b"IDAT")
    named = insert_chunk(linear, b"sRGB", b"\0", before=b"IDAT")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile = insert_chunk(linear, b"iCCP", b"sRGB\0\0" + zlib.compress(profile), before=b"IDAT")
    without_value = insert_chunk(plain, b"gAMA", bytes(4), before=b"IDAT")

    assert colour_of(linear) == pytest.approx([srgb(30) * 128 / 255 + 127] * 3, abs=1)
    assert colour_of(named) == colour_of(with_profile) == colour_of(without_value) == colour_of(plain)


def test_profile_of_srgb_changes_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, with_profile = (
        preprocess(encode(picture(), "PNG", **icc), imagenet_form(), max_pixels=MAX_PIXELS)
        for icc in ({}, {"icc_profile": profile})
    )

    assert np.abs(with_profile - plain).max() < 0.02  # one of 255


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_invalid_or_unfitting_profile_is_ignored(mode):
    profiles = [b"x" * 200, ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
    if mode == "CMYK":
        profiles.append(swapped_profile())
    plain, *with_profile = (
        preprocess(encode(picture(mode), "JPEG", **icc), imagenet_form(), max_pixels=MAX_PIXELS)
        for icc in ({}, *({"icc_profile": profile} for profile in profiles))
    )

    for pixels in with_profile:
        assert np.abs(pixels - plain).max() < 0.05  # CMYK is converted after resizing


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_truncated_files_are_rejected(photo, file_format):
    whole = encode(Image.open(io.BytesIO(photo)).convert("RGB"), file_format)
    for share in (0.1, 0.5, 0.9):
        assert "image" in reason(whole[: int(len(whole) * share)])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_fuzzed_bytes_are_decoded_or_rejected(data):
    """Files with bytes replaced, removed or inserted give an array or InvalidInput, nothing else."""
    good = data.draw(st.sampled_from(SEEDS))
    start = data.draw(st.integers(0, len(good)))
    length = data.draw(st.integers(0, 40))
    broken = good[:start] + data.draw(st.binary(max_size=40)) + good[start + length :]
    try:
        pixels = preprocess(broken, imagenet_form(data.draw(st.sampled_from(ResizeMode))), max_pixels=1_000_000)
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
        ("RGB", "BMP", {}),
        ("RGB", "AVIF", {}),
    ]
]


def test_any_wrong_byte_is_read_or_rejected():
    """Among them are lengths that leave a segment empty, which random changes seldom meet."""
    for good in SEEDS:
        for at in range(len(good)):
            for value in (0, 2, 255):
                with suppress(Unreadable):
                    read_file(good[:at] + bytes([value]) + good[at + 1 :])


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda text: text, id="plain"),
        pytest.param(lambda text: f"data:image/png;base64,{text}", id="data URL"),
        pytest.param(lambda text: f"DATA:;BASE64,{text}", id="shortest data URL"),
        pytest.param(lambda text: "\r\n".join(text[i : i + 76] for i in range(0, len(text), 76)), id="lines"),
        pytest.param(lambda text: f" \t\n{text}\n", id="surrounded by whitespace"),
        pytest.param(lambda text: text.translate(str.maketrans("+/", "-_")), id="the URL's alphabet"),
        pytest.param(lambda text: text.rstrip("="), id="unpadded"),
        pytest.param(lambda text: f"data:image/png;base64,{quote(text, safe='')}", id="percent escapes"),
        pytest.param(lambda text: f"data:image/png;base64,{''.join(f'%{ord(c):02x}' for c in text)}", id="all escaped"),
        pytest.param(lambda text: f" data:image/jpeg;charset=x; base64, {text[:9]} {text[9:]} ", id="both"),
    ],
)
def test_base64_variants_decode(wrap):
    data = bytes(range(256)) * 3 + b"!"

    assert decode_base64(wrap(base64.b64encode(data).decode())) == data


@given(st.binary(min_size=1))
def test_base64_round_trip(data):
    assert decode_base64(base64.b64encode(data).decode()) == data


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,abcd", "is a data URL without ;base64"),
        ("data:", "is a data URL without ;base64"),
        ("abcde", "is not valid Base64"),
        ("ab=cd", "is not valid Base64"),
        ("abcd====", "is not valid Base64"),
        ("data:image/png;base64,abc%2", "is not valid Base64"),
        ("data:image/png;base64,abc%C3%A9", "is not valid Base64"),
        ("data:image/png;base64," + 40_000 * "%zz", "is not valid Base64"),
        ("<svg>", "is not valid Base64"),
        ("ünïcödé!", "is not valid Base64"),
        ("\ud800", "is not valid Base64"),
        ("\x00\x00\x00\x00", "is not valid Base64"),
    ],
)
def test_invalid_base64_is_rejected(text, reason):
    with pytest.raises(InvalidInput) as raised:
        decode_base64(text)
    assert raised.value.errors == [{"field": "image_data", "reason": reason}]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "BMP"])
def test_decoding_that_takes_longer_than_estimated_is_ended(monkeypatch, format_):
    data = encode(noise(1_000, 1_000), format_)
    load_image(data, max_pixels=MAX_PIXELS)
    monkeypatch.setattr(time, "thread_time", partial(next, count()))  # a second for each block
    with pytest.raises(InvalidInput) as error:
        load_image(data, max_pixels=MAX_PIXELS)
    assert error.value.errors == [{"field": "image_data", "reason": "takes too long to decode: more than 5.4 s"}]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_work_ends_at_the_next_look_once_nobody_waits(monkeypatch, file_format, orientation):
    monkeypatch.setattr(preprocessing, "WEBP_PROCESS_S", 10)  # at a process, how often it looks depends on the time
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = noise(2_000, 1_500)
    if file_format == "PNG":
        image.putalpha(image.getchannel(0))  # transparency is blended in strips, too
    data = encode(image, file_format, **({} if file_format in ("BMP", "GIF") else {"exif": exif}))
    looks = count()
    preprocess(data, imagenet_form(), max_pixels=MAX_PIXELS, waits=lambda: next(looks) >= 0)
    number = next(looks)
    assert number > 3

    for last in range(0, number, max(1, number // 20)):
        waits = partial(next, repeat(True, last), False)
        with pytest.raises(CallerGone):
            preprocess(data, imagenet_form(), max_pixels=MAX_PIXELS, waits=waits)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("size", [(1_600, 1_200), (1_200, 1_600), (600, 2_400), (2_400, 600), (3, 9_000), (9_000, 3)])
def test_resizing_in_strips_equals_resizing_what_is_shown(mode, orientation, size):
    image = noise(*size).convert(mode)
    image.info["orientation"] = orientation
    shown = image.transpose(preprocessing.TRANSPOSE[orientation]) if orientation > 1 else image

    assert resize(image, imagenet_form()).tobytes() == shown.resize((224, 224)).tobytes()


LARGE = {"AVIF": picture, "WEBP": lambda: Image.new("RGB", (2_500, 2_500), "red")}
"""Images that are decoded in a process, by format."""


@pytest.fixture
def endless_decoder(monkeypatch, tmp_path):
    program = tmp_path / "endless.py"
    program.write_text(f"""
import runpy
from PIL.ImageFile import ImageFile

def endless(image):
    while True:
        pass

ImageFile.load = endless
runpy.run_path({decoder.PROGRAM!r}, run_name="__main__")
""")
    monkeypatch.setattr(decoder, "PROGRAM", str(program))


@pytest.mark.usefixtures("endless_decoder")
@pytest.mark.parametrize("file_format", LARGE)
def test_process_that_takes_too_long_is_ended(monkeypatch, file_format):
    monkeypatch.setattr(preprocessing, "MAX_CPU_S", 0.5)

    assert reason(encode(LARGE[file_format](), file_format)) == "takes too long to decode: more than 0.5 s"


@pytest.mark.usefixtures("endless_decoder")
@pytest.mark.parametrize("file_format", LARGE)
def test_process_ends_once_nobody_waits(monkeypatch, file_format):
    processes = []

    class Recorded(subprocess.Popen[bytes]):
        def __init__(self, *args, **options) -> None:
            super().__init__(*args, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    data = encode(LARGE[file_format](), file_format)
    looks = count()
    with pytest.raises(CallerGone):
        load_image(data, max_pixels=MAX_PIXELS, waits=lambda: next(looks) < 10)

    [process] = processes
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        (5_000_000, "is a damaged or truncated image, or needs too much memory to decode"),  # libavif does not say
        (17_000_000, "needs too much memory to decode"),
        (28_000_000, "needs too much memory to decode"),
        (100_000_000, None),
    ],
)
def test_avif_gets_no_more_memory_than_there_is(monkeypatch, memory, expected):
    data = encode(Image.new("RGB", (2_000, 2_000)), "AVIF", speed=10)
    decode = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda *file, **options: decode(*file, **options | {"memory": memory}))

    if expected is None:
        assert load_image(data, max_pixels=MAX_PIXELS).size == (2_000, 2_000)
    else:
        assert reason(data) == expected


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("is_animated", [False, True])
def test_webp_is_the_same_from_a_process(monkeypatch, mode, is_animated):
    wide = picture().resize((1_200, 900)).convert(mode)  # more than one strip
    wide.putpixel((3, 4), (1, 2, 3, 4)[: len(mode)])
    animation = {"save_all": True, "append_images": [wide.rotate(180)]} if is_animated else {}
    data = encode(wide, "WEBP", lossless=True, **animation)
    here = load_image(data, max_pixels=MAX_PIXELS)
    monkeypatch.setattr(preprocessing, "WEBP_PROCESS_S", 0)
    there = load_image(data, max_pixels=MAX_PIXELS)

    assert (there.mode, there.info) == (here.mode, here.info)
    assert there.tobytes() == here.tobytes()


def test_large_truncated_webp_is_rejected():
    data = encode(LARGE["WEBP"](), "WEBP")
    assert reason(data[: len(data) // 2]) == "is a damaged or truncated image"


@pytest.mark.parametrize("file_format", LARGE)
@pytest.mark.parametrize("program", ["/no/such/program", "/bin/false"])
def test_image_is_not_called_damaged_where_no_process_starts(monkeypatch, program, file_format):
    monkeypatch.setattr(sys, "executable", program)

    with pytest.raises(Unavailable, match=f"This {file_format} cannot be decoded now"):
        load_image(encode(LARGE[file_format](), file_format), max_pixels=MAX_PIXELS)
