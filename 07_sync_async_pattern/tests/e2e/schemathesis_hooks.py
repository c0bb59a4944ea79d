"""Valid requests contain real images, which a JSON Schema cannot describe; long polls wait only briefly."""

import base64
import io
from typing import Any

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


@schemathesis.hook
def map_query(_context: schemathesis.HookContext, query: dict[str, Any] | None) -> dict[str, Any] | None:
    if query and isinstance(query.get("wait"), int | float):
        query["wait"] = min(query["wait"], 0.2)
    return query
