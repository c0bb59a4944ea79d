"""Downloads of known size and SHA-256, resumed after a lost connection and checked before use.

urllib handles redirects, proxies and the system's certificates, so the builder image needs no HTTP client library.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from queue import Empty, SimpleQueue
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from models.files import BuildError, locked, say, sha256_of

STALLED_AFTER_S = 20
CHUNK_BYTES = 256 * 1024


class DownloadError(BuildError):
    """The file is not available. A partial download is kept if the next attempt can resume it."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file on the web with known size and SHA-256."""

    url: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return PurePosixPath(urlsplit(self.url).path).name

    def mismatch(self, path: Path) -> str | None:
        """How the file differs from the source; None if it is the same."""
        size = path.stat().st_size
        if size != self.size_bytes:
            return f"{content_type_of(path) or 'a file'} of {size:,} bytes instead of {self.size_bytes:,}"
        if (digest := sha256_of(path)) != self.sha256:
            return f"a file with SHA-256 {digest} instead of {self.sha256}"
        return None


def content_type_of(path: Path) -> str | None:
    with path.open("rb") as file:
        return content_type(file.read(512))


def content_type(head: bytes) -> str | None:
    """Names the usual substitutes for a model by their first bytes; None for anything else."""
    head = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return None


class Downloader:
    """Fetches into a cache folder. After a failure to reach a host, a Downloader does not try that host again."""

    def __init__(self, cache: Path, answer_within_s: float = 8) -> None:
        self._cache = cache
        self._answer_within_s = answer_within_s
        self._unreachable: dict[str, DownloadError] = {}

    def fetch(self, source: Source) -> Path:
        """The path of the checked file.

        Raises:
            DownloadError: the file is unreachable, incomplete or another one.
        """
        target = self._cache / source.name
        with locked(self._cache):
            if target.exists():
                if (mismatch := source.mismatch(target)) is None:
                    return target
                say(f"{target} is {mismatch}: fetching it again")
            partial = self._cache / f"{source.name}.part"
            self._complete(source, partial)
            partial.replace(target)
        return target

    def _complete(self, source: Source, partial: Path) -> None:
        """Receive until `partial` is the source; retry as long as each connection delivers more of it."""
        resumed = partial.exists()
        while True:
            before = size_of(partial)
            if before < source.size_bytes:
                self._receive(source, partial, before)
            after = size_of(partial)
            if after < source.size_bytes and (after == 0 or content_type_of(partial) is None):
                lost = f"connection lost at {after:,} of {source.size_bytes:,} bytes"
                if after <= before:
                    raise DownloadError(f"{source.url}: {lost}")
                say(f"{source.name}: {lost}: resuming")
                continue
            if (mismatch := source.mismatch(partial)) is None:
                return
            partial.unlink()
            if not resumed:
                raise DownloadError(f"{source.url} gave {mismatch}")
            resumed = False  # the partial file of an earlier run may be corrupt: retry once from the start

    def _receive(self, source: Source, partial: Path, have: int) -> None:
        """Append the bytes of one response; returns early, without an error, when the connection breaks."""
        with self._open(source, have) as response:
            start = have if response.status == 206 else 0  # a server without Range support sends the whole file
            if (announced := announced_size(response, start)) not in (None, source.size_bytes):
                what = content_type(response.read(512)) or "a file"
                raise DownloadError(f"{source.url} gave {what} of {announced:,} bytes instead of {source.size_bytes:,}")
            progress = tqdm(
                total=source.size_bytes, initial=start, desc=source.name, unit="B", unit_scale=True, disable=None
            )
            with progress, partial.open("ab" if start else "wb") as file:
                # One byte more than expected shows that it is the wrong file.
                while (room := source.size_bytes + 1 - file.tell()) > 0:
                    try:
                        chunk = response.read(min(CHUNK_BYTES, room))
                    except (OSError, HTTPException):
                        return
                    if not chunk:
                        return
                    file.write(chunk)
                    progress.update(len(chunk))

    @contextmanager
    def _open(self, source: Source, have: int) -> Iterator[HTTPResponse]:
        host = urlsplit(source.url).netloc
        if host in self._unreachable:
            raise self._unreachable[host]
        say(f"downloading {source.url} ({source.size_bytes / 1e6:.1f} MB{f', from byte {have:,}' if have else ''})")
        request = Request(source.url, headers={"Range": f"bytes={have}-"} if have else {})  # noqa: S310 our own table
        try:
            response = open_within(request, self._answer_within_s)
        except HTTPError as exc:
            exc.close()
            raise DownloadError(f"{source.url} answered {exc.code} {exc.reason}") from exc
        except (OSError, HTTPException) as exc:
            error = DownloadError(f"{host} cannot be reached: {getattr(exc, 'reason', None) or exc}")
            self._unreachable[host] = error
            raise error from exc
        with response:
            yield response


def open_within(request: Request, seconds: float) -> HTTPResponse:
    """urlopen with a deadline for the whole call: its own timeout excludes name resolution and is per address."""
    outcome: SimpleQueue[HTTPResponse | Exception] = SimpleQueue()

    def send() -> None:
        try:
            outcome.put(urlopen(request, timeout=STALLED_AFTER_S))  # noqa: S310 our own table
        except (OSError, HTTPException) as exc:
            outcome.put(exc)

    threading.Thread(target=send, daemon=True).start()
    try:
        response = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds} s") from None
    if isinstance(response, Exception):
        raise response
    return response


def announced_size(response: HTTPResponse, start: int) -> int | None:
    """The size of the whole file according to the response headers; None if they do not state it."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != start:
            raise DownloadError(f"{response.url} answered with a range that was not asked for")
        return int(match[2])
    length = response.headers.get("Content-Length")
    return int(length) if length is not None else None


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
