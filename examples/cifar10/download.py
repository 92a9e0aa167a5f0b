"""Download, verify and unpack the official archive.

A download can be interrupted at any point: the next one continues it, at another address
if need be, and nothing is used before its SHA-256 is right. Of several processes one downloads,
and the others wait for it.
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

import filelock
import rich.console
import rich.progress

from examples.cifar10.configs import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
LARGEST = 200_000_000  # bytes; the archive has 170 million
CONNECT_SECONDS = 5  # to connect and get the first answer
STALL_SECONDS = 30  # without a byte


class NoAnswerError(UserError):
    """No address gave a byte."""


class WrongFileError(Exception):
    """An address has another file."""


def archive(urls: Sequence[str], sha256: str, folder: Path) -> None:
    """Download the archive from the first address that has it, and unpack its `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".tar.gz.part")
    lock = filelock.FileLock(folder.with_name(folder.name + ".lock"))
    with rich.console.Console().status("waiting for another process that downloads CIFAR-10"):
        held = lock.acquire()
    with held:
        if not folder.is_dir():
            if _sha256(part) != sha256:  # It is whole if only the unpacking was interrupted.
                download(urls, sha256, part)
            unpack(part, folder)
            part.unlink()


def download(urls: Sequence[str], sha256: str, part: Path) -> None:
    """Download to `part` from the first address that has it."""
    errors, answered = [], False
    for url in urls:
        before = _size(part)
        try:
            return fetch(url, sha256, part)
        except WrongFileError as error:
            errors.append(f"{url}: {error}")
            answered = True
        except (OSError, http.client.HTTPException, ValueError) as error:
            errors.append(f"{url}: {error}")
            answered |= _size(part) != before
    if answered:
        raise UserError("CIFAR-10 could not be downloaded. " + "; ".join(errors))
    raise NoAnswerError(f"CIFAR-10 cannot be reached ({'; '.join(errors)})")


def fetch(url: str, sha256: str, part: Path) -> None:
    """Download to `part`, continuing what it holds, as long as every attempt adds to it.

    What another address or an earlier run began may belong to another file. If the whole is wrong
    then, this address sends all of it once more.
    """
    ours = _size(part) == 0
    while True:
        before = _size(part)
        try:
            _fetch_rest(url, part)
        except (OSError, http.client.HTTPException):
            if _size(part) <= before:
                raise
            continue
        digest = _sha256(part)
        if digest == sha256:
            return
        part.unlink(missing_ok=True)
        if ours:
            raise WrongFileError(
                f"refused and deleted, because its SHA-256 is {digest}, not {sha256}"
            )
        ours = True


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
            # What goes on beyond any size that the archive can have is refused by its digest.
            while file.tell() <= LARGEST and (block := response.read(1 << 16)):
                file.write(block)
                progress.advance(task, len(block))
    if total is not None and _size(part) < min(total, LARGEST):
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


def _sha256(path: Path) -> str | None:
    if not path.exists():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _progress() -> rich.progress.Progress:
    return rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
