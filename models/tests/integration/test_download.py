import hashlib
import socket
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from models.artifacts import MODEL_ZOO
from models.download import Downloader, DownloadError, Source
from models.tests.conftest import Site

CONTENT = bytes(range(256)) * 4000
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:c0c3f76d\nsize 13964571\n"
PAGE = b"\n<!DOCTYPE html><html><title>Sign in to this network</title></html>"


@pytest.fixture
def source(site: Site) -> Source:
    site.body = CONTENT
    return Source(site.url, len(CONTENT), hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cached_part(cache: Path, content: bytes) -> None:
    cache.mkdir()
    (cache / "model.onnx.part").write_bytes(content)


def test_sources_are_those_of_the_model_zoo():
    assert dict(MODEL_ZOO) == {
        "mobilenet_v2": Source(
            "https://huggingface.co/onnxmodelzoo/mobilenetv2-12/resolve/main/mobilenetv2-12.onnx",
            13964571,
            "c0c3f76d93fa3fd6580652a45618618a220fced18babf65774ed169de0432ad5",
        ),
        "resnet50": Source(
            "https://huggingface.co/onnxmodelzoo/resnet50-v2-7/resolve/main/resnet50-v2-7.onnx",
            102442452,
            "79102261eb6e5fd7af5d27f41316293e388c5cb691e5d25bfb035c4f64fefe31",
        ),
    }


def test_second_fetch_uses_the_cache(source: Source, site: Site, cache: Path):
    path = Downloader(cache).fetch(source)
    assert path.read_bytes() == CONTENT
    assert Downloader(cache).fetch(source) == path
    assert site.requested_ranges == [None]
    assert not (cache / "model.onnx.part").exists()


def test_partial_download_is_resumed(source: Source, site: Site, cache: Path):
    cached_part(cache, CONTENT[:1000])
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT
    assert site.requested_ranges == ["bytes=1000-"]


def test_complete_partial_file_is_not_fetched_again(source: Source, site: Site, cache: Path):
    cached_part(cache, CONTENT)
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT
    assert site.requested_ranges == []


@pytest.mark.parametrize("part", [b"\0" * 1000, b"\0" * len(CONTENT), CONTENT + b"\0"], ids=["short", "full", "long"])
def test_corrupt_partial_file_is_discarded(source: Source, cache: Path, part: bytes):
    cached_part(cache, part)
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT


def test_server_without_ranges_restarts_the_download(source: Source, site: Site, cache: Path):
    site.has_ranges = False
    cached_part(cache, CONTENT[:1000])
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT


def test_lost_connection_is_resumed(source: Source, site: Site, cache: Path):
    site.drop_at = [300_000, 600_000]
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT
    assert site.requested_ranges == [None, "bytes=300000-", "bytes=600000-"]


def test_connection_without_progress_fails_and_keeps_the_partial_file(source: Source, site: Site, cache: Path):
    site.drop_at = [300_000, 300_000]
    with pytest.raises(DownloadError, match="connection lost at 300,000 of 1,024,000 bytes"):
        Downloader(cache).fetch(source)
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT
    assert site.requested_ranges[-1] == "bytes=300000-"


@pytest.mark.parametrize("sends_length", [True, False], ids=["with length", "without length"])
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(LFS_POINTER, r"gave a Git LFS pointer of \d+ bytes instead of 1,024,000", id="LFS pointer"),
        pytest.param(PAGE, r"gave an HTML page of \d+ bytes instead of 1,024,000", id="HTML page"),
        pytest.param(CONTENT + b"more", r"gave a file of 1,024,00\d bytes instead of 1,024,000", id="too long"),
        pytest.param(CONTENT[:-1] + b"!", "gave a file with SHA-256 .* instead of", id="wrong hash"),
    ],
)
def test_wrong_file_is_rejected(source: Source, site: Site, cache: Path, body: bytes, reason: str, sends_length: bool):
    site.body, site.sends_length = body, sends_length
    with pytest.raises(DownloadError, match=reason):
        Downloader(cache).fetch(source)
    assert not (cache / "model.onnx").exists()
    site.body = CONTENT
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT


def test_html_page_does_not_overwrite_the_partial_file(source: Source, site: Site, cache: Path):
    cached_part(cache, CONTENT[:1000])
    site.body, site.has_ranges = PAGE, False
    with pytest.raises(DownloadError, match="an HTML page"):
        Downloader(cache).fetch(source)
    assert (cache / "model.onnx.part").read_bytes() == CONTENT[:1000]


@pytest.mark.parametrize("content_range", ["bytes 0-9/1024000", "nonsense"])
def test_unrequested_range_is_rejected(source: Source, site: Site, cache: Path, content_range: str):
    cached_part(cache, CONTENT[:1000])
    site.content_range = content_range
    with pytest.raises(DownloadError, match="range that was not asked for"):
        Downloader(cache).fetch(source)


def test_wrong_file_in_the_cache_is_replaced(source: Source, cache: Path, stderr: Callable[[], str]):
    cache.mkdir()
    (cache / "model.onnx").write_bytes(LFS_POINTER)
    assert Downloader(cache).fetch(source).read_bytes() == CONTENT
    assert "is a Git LFS pointer" in stderr()


def test_error_status_is_reported(source: Source, site: Site, cache: Path):
    site.status = 404
    with pytest.raises(DownloadError, match=r"model\.onnx answered 404 Not Found"):
        Downloader(cache).fetch(source)


def test_hanging_server_times_out(source: Source, site: Site, cache: Path):
    site.hang = threading.Event()
    with pytest.raises(DownloadError, match=r"cannot be reached: no answer within 0\.1 s"):
        Downloader(cache, answer_within_s=0.1).fetch(source)


def test_unreachable_host_is_tried_once(source: Source, cache: Path, stderr: Callable[[], str]):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        nowhere = replace(source, url=f"http://127.0.0.1:{unused.getsockname()[1]}/model.onnx")
        downloader = Downloader(cache)
        for _ in range(2):
            with pytest.raises(DownloadError, match=r"cannot be reached: .*refused"):
                downloader.fetch(nowhere)
    assert stderr().count("downloading") == 1
