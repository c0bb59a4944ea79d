"""Invalid input gets an error that names the reason, never a 500, and memory stays bounded."""

import asyncio
import base64
import json
import random
import threading
from collections import Counter
from pathlib import Path

import httpx
import pytest
from PIL import Image

from serving_testing.processes import cpu_seconds
from tests.corpus import scans
from tests.images import bomb, encode, gif_header, picture, png_header, webp_header

MAX_FILE = 12_000_000
MAX_BODY = 17 * 1024 * 1024
GROWTH_MB = 400  # 8 bytes for each of 50,000,000 pixels
JSON = {"Content-Type": "application/json"}


def body(image: bytes | str) -> bytes:
    text = image if isinstance(image, str) else base64.b64encode(image).decode()
    return json.dumps({"image_data": text}).encode()


PNG = encode(picture(), "PNG")
JPEG = encode(picture(), "JPEG")
GIF = encode(picture(), "GIF")
WEBP = encode(picture(), "WEBP")

# Request body, expected status, and a part of the expected reason.
CASES = {
    "no body": (b"", 400, "missing"),
    "not JSON": (b"image", 400, "is not JSON"),
    "half a JSON": (b'{"image_data": "iVBOR', 400, "is not JSON"),
    "not UTF-8": (b'{"image_data": "\xff\xfe"}', 400, "cannot be read as JSON"),
    "nested too deeply": (b"[" * 100_000, 400, "cannot be read as JSON"),
    "a list": (b"[]", 400, "body"),
    "null": (b"null", 400, "body"),
    "no field": (b"{}", 400, "is missing"),
    "another name": (b'{"image": "iVBORw0KGgo="}', 400, "is missing"),
    "a null field": (b'{"image_data": null}', 400, "must be a valid string"),
    "a number": (b'{"image_data": 7}', 400, "must be a valid string"),
    "a list of bytes": (b'{"image_data": [137, 80]}', 400, "must be a valid string"),
    "an object": (b'{"image_data": {"a": 1}}', 400, "must be a valid string"),
    "empty": (body(""), 400, "is empty"),
    "whitespace": (body(" \n"), 400, "is empty"),
    "an empty data URL": (body("data:image/png;base64,"), 400, "is empty"),
    "a data URL of text": (body("data:,hello"), 400, "without ;base64"),
    "a link": (body("https://example.com/cat.jpg"), 400, "is not valid Base64"),
    "a file name": (body("/etc/passwd"), 400, "image"),
    "wrong padding": (body("iVBORw0KGg="), 400, "is not valid Base64"),
    "text in the URL's alphabet": (body("_-_-"), 400, "known format"),
    "a lone surrogate": (b'{"image_data": "\\ud800"}', 400, "image_data"),
    "text": (body(b"hello, world"), 400, "known format"),
    "one byte": (body(b"\x89"), 400, "known format"),
    "SVG": (body(b'<svg xmlns="http://www.w3.org/2000/svg"/>'), 400, "known format"),
    "PDF": (body(encode(picture(), "PDF")), 400, "known format"),
    "TIFF": (body(encode(picture(), "TIFF")), 400, "is a TIFF file"),
    "HEIC": (body(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), 400, "export it as JPEG"),
    "a ZIP": (body(b"PK\x03\x04" + bytes(100)), 400, "known format"),
    "only a JPEG's first bytes": (body(JPEG[:3]), 400, "image"),
    "half a JPEG": (body(JPEG[: len(JPEG) // 2]), 400, "damaged or truncated"),
    "half a PNG": (body(PNG[: len(PNG) // 2]), 400, "damaged or truncated"),
    "half a GIF": (body(GIF[: len(GIF) // 2]), 400, "image"),
    "half a WebP": (body(WEBP[: len(WEBP) // 2]), 400, "image"),
    "a PNG with a broken checksum": (body(PNG[:50] + b"\x00\x01\x02" + PNG[53:]), 400, "image"),
    "a PNG without pixels": (body(png_header(10, 10)), 400, "damaged"),
    "a PNG of no size": (body(png_header(0, 0)), 400, "image"),
    "a PNG that claims 10^18 pixels": (body(png_header(2**30, 2**30)), 400, "too many pixels"),
    "a PNG that claims 51 megapixels": (body(png_header(10_000, 5_100)), 400, "too many pixels"),
    "a WebP that claims 268 megapixels": (body(webp_header(16_383, 16_383)), 400, "too many pixels"),
    "a GIF that claims 4 gigapixels": (body(gif_header(65_535, 65_535)), 400, "too many pixels"),
    "a strip": (body(png_header(70_000, 1)), 400, "is too large"),
    "a JPEG with too many scans": (body(scans(7_000, 7_000, 488)), 400, "takes too long to decode"),
    "a WebP that needs too much memory": (body(webp_header(16_383, 3_051)), 400, "needs too much memory"),
    "a file that is too large": (body(bytes(MAX_FILE + 1)), 413, "The image file is larger than 12,000,000 bytes"),
    "a body that is too large": (body("A" * MAX_BODY), 413, "The image file is larger than 12,000,000 bytes"),
}


@pytest.mark.parametrize("case", CASES)
def test_invalid_request_returns_problem_with_reason(proxy, case):
    content, status, reason = CASES[case]
    response = proxy.post("/predict", content=content, headers=JSON)

    assert response.status_code == status, response.text
    problem = response.json()
    assert reason in json.dumps(problem)
    assert problem["request_id"] == response.headers["X-Request-ID"]
    if status == 400:
        assert problem["errors"][0]["field"] in ("image_data", "body")


def test_non_json_content_type_returns_400(proxy):
    response = proxy.post("/predict", content=PNG, headers={"Content-Type": "image/png"})

    assert response.status_code == 400
    assert "JSON" in response.text


def test_chunked_body_over_limit_returns_413(proxy):
    def chunks():
        yield b'{"image_data": "'
        for _ in range(3 * MAX_BODY // 2**20):
            yield b"A" * 2**20

    assert proxy.post("/predict", content=chunks(), headers=JSON).status_code == 413


def test_fuzzed_image_returns_200_or_400(proxy):
    """Bytes replaced, removed and inserted; seeded, so that a failure can be reproduced."""
    chance = random.Random(7)
    for number in range(200):
        image = bytearray(chance.choice([PNG, JPEG, GIF, WEBP]))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(image))
            image[at : at + chance.choice([0, 1, 1, 1, 20])] = chance.randbytes(chance.choice([0, 1, 1, 5]))
        response = proxy.post("/predict", json={"image_data": base64.b64encode(image).decode()})
        assert response.status_code in (200, 400), (number, response.text)


@pytest.fixture
def pid(system) -> int:
    """That of the proxy's process."""
    process = system.processes.get("proxy")
    if process is None or not Path("/proc/self/stat").exists():
        pytest.skip("the proxy is not a process of this test, or this is not Linux")
    return int(process.popen.pid)


@pytest.fixture
def memory_bounded(pid):
    """Fails the test if the proxy's memory grows by GROWTH_MB or more."""

    def resident_mb() -> float:
        pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
        return int(pages) * 4096 / 1e6

    before = peak = resident_mb()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    done.set()
    watcher.join()
    print(f"{before:.0f} MB before, {peak:.0f} MB at most")
    assert peak - before < GROWTH_MB


@pytest.mark.usefixtures("memory_bounded")
def test_decompression_bombs_return_400_within_memory_bound(proxy, tmp_path):
    for image in (bomb(tmp_path, 20_000), webp_header(16_383, 16_383), gif_header(65_535, 65_535)):
        assert proxy.post("/predict", content=body(image), headers=JSON).status_code == 400
    assert proxy.post("/predict", content=body(bomb(tmp_path, 7_000)), headers=JSON).status_code == 200


@pytest.mark.usefixtures("memory_bounded")
async def test_concurrent_large_bodies_return_429_within_memory_bound(system):
    large = body("A" * (MAX_FILE * 4 // 3))

    # Not threads that share a client: httpx may close a connection for one that another is about to use.
    async with httpx.AsyncClient(base_url=system.proxy, timeout=60, trust_env=False) as client:
        posts = [client.post("/predict", content=large, headers=JSON) for _ in range(60)]
        statuses = Counter(response.status_code for response in await asyncio.gather(*posts))
        assert statuses.keys() == {400, 429}, statuses
        assert (await client.get("/health")).status_code == 200


@pytest.mark.parametrize("after_s", [0, 0.1])
async def test_twenty_uploads_whose_clients_hang_up_cost_less_cpu_than_half_of_one(system, pid, after_s):
    content = body(encode(Image.new("RGB", (10_000, 5_000), "green"), "JPEG"))
    head = "POST /predict HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content
    async with httpx.AsyncClient(base_url=system.proxy, timeout=60, trust_env=False) as client:
        before = cpu_seconds(pid)
        assert (await client.post("/predict", content=content, headers=JSON)).status_code == 200
        one = cpu_seconds(pid) - before
        writers = [(await asyncio.open_connection("127.0.0.1", client.base_url.port))[1] for _ in range(20)]
        for writer in writers:
            writer.write(request)
        await asyncio.gather(*(writer.drain() for writer in writers))
        await asyncio.sleep(after_s)
        for writer in writers:
            writer.close()
        before = cpu_seconds(pid)
        assert (await client.get("/health")).status_code == 200
        await asyncio.sleep(3)
    spent = cpu_seconds(pid) - before

    print(f"one: {one:.2f} s, twenty after their clients had gone: {spent:.2f} s")
    assert spent < one / 2


def test_largest_file_is_predicted(proxy):
    """With the line breaks that `base64` makes."""
    text = base64.encodebytes(PNG + bytes(MAX_FILE - len(PNG))).decode()
    response = proxy.post("/predict", content=json.dumps({"image_data": text}).encode(), headers=JSON)

    assert response.status_code == 200, response.text


@pytest.mark.parametrize("file_format", ["BMP", "AVIF"])
def test_formats_that_browsers_show_are_predicted(proxy, file_format):
    response = proxy.post("/predict", content=body(encode(picture(), file_format)), headers=JSON)

    assert response.json()["result_sync"]


def test_valid_image_is_predicted_after_bad_input(proxy):
    assert proxy.post("/predict", content=body(JPEG), headers=JSON).json()["result_sync"]
