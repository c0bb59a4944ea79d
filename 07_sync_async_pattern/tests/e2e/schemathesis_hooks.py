"""What no JSON Schema can say: which strings are images. Good requests get these, bad ones whatever comes."""

import base64
import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image


def encoded(mode: str, file_format: str) -> str:
    buffer = io.BytesIO()
    Image.new(mode, (8, 5)).save(buffer, file_format)
    return base64.b64encode(buffer.getvalue()).decode()


IMAGES = [encoded("RGB", "JPEG"), encoded("RGBA", "PNG"), encoded("RGB", "WEBP"), encoded("P", "GIF")]
WRAPPED = [*IMAGES, f"data:image/png;base64,{IMAGES[1]}", f" {IMAGES[0]}\n"]

schemathesis.openapi.format("base64-image", st.sampled_from(WRAPPED))
