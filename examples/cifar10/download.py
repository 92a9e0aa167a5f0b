"""Download, verify and unpack the official archive.

A download can be interrupted at any point: the next one continues it, at another address
if need be, and nothing is used before its SHA-256 is right.
"""

import hashlib
import http
import http.client
import os
import queue
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import rich.progress

from examples.cifar10.configs import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
CONNECT_SECONDS = 5  # to connect and get the first answer
STALL_SECONDS = 30  # without a byte


class NoAnswerError(UserError):
    """No address gave a byte."""


def archive(urls: Sequence[str], sha256: str, folder: Path) -> None:
    """Download the archive from the first address that has it, and unpack its `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".tar.gz.part")
    errors, answered = [], False
    for url in urls:
        before = _size(part)
        try:
            fetch(url, part)
        except (OSError, http.client.HTTPException, ValueError) as error:
            errors.append(f"{url}: {error}")
            answered |= _size(part) > before
            continue
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest == sha256:
            unpack(part, folder)
            part.unlink()
            return
        part.unlink()
        errors.append(f"{url}: refused and deleted, because its SHA-256 is {digest}, not {sha256}")
        answered = True
    if answered:
        raise UserError("CIFAR-10 could not be downloaded. " + "; ".join(errors))
    raise NoAnswerError(f"CIFAR-10 cannot be reached ({'; '.join(errors)})")


def fetch(url: str, part: Path) -> None:
    """Download to `part`, continuing what it holds, as long as every attempt adds to it."""
    while True:
        before = _size(part)
        try:
            return _fetch_rest(url, part)
        except (OSError, http.client.HTTPException):
            if _size(part) <= before:
                raise


def _fetch_rest(url: str, part: Path) -> None:
    offset = _size(part)
    try:
        response = _open(url, offset)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # There is nothing after what `part` holds.
        raise
    with response, _progress() as progress:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            offset = 0  # The server sends the file from its start.
        length = response.headers.get("Content-Length")
        total = None if length is None else offset + int(length)
        task = progress.add_task(f"downloading {url}", total=total, completed=offset)
        with part.open("ab" if offset else "wb") as file:
            while block := response.read(1 << 16):
                file.write(block)
                progress.advance(task, len(block))
    if total is not None and _size(part) < total:
        raise ConnectionError(f"ended at {_size(part)} of {total} bytes")


def _open(url: str, offset: int) -> http.client.HTTPResponse:
    """Request the file from `offset` on."""
    request = urllib.request.Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})
    answers = queue.SimpleQueue()

    def work():
        try:
            answers.put(urllib.request.urlopen(request, timeout=STALL_SECONDS))
        except Exception as error:
            answers.put(error)

    # In a thread, because looking up a host's name knows no time limit.
    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=CONNECT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer in {CONNECT_SECONDS} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def unpack(archive: Path, folder: Path) -> None:
    """Unpack the member `folder.name`; the folder appears only when it is complete."""
    with (
        tempfile.TemporaryDirectory(dir=folder.parent) as temporary,
        tarfile.open(archive) as tar,
    ):
        tar.extractall(temporary, filter="data")
        os.replace(Path(temporary, folder.name), folder)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
