"""Downloads from a server of our own, and data sets."""

import contextlib
import hashlib
import http.server
import io
import re
import tarfile
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import numpy as np
import pytest

from examples.cifar10 import data, download
from examples.cifar10.configs import Options, Recipe, UserError


def made_up_archive() -> bytes:
    content = np.random.default_rng(0).bytes(200_000)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        info = tarfile.TarInfo("folder/data_batch_1.bin")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ARCHIVE = made_up_archive()
SHA256 = hashlib.sha256(ARCHIVE).hexdigest()


@contextlib.contextmanager
def server(content: bytes, cut: int | None = None) -> Iterator[tuple[str, list[str | None]]]:
    """Serve `content`, at most `cut` bytes an answer; yield the address and the ranges asked."""
    ranges = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Range"]
            ranges.append(asked)
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:][:cut])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/archive.tar.gz", ranges
        finally:
            running.shutdown()
            thread.join()


def left(folder: Path) -> list[str]:
    """What a download leaves, besides the lock's file."""
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def nowhere() -> str:
    """Return an address where nothing listens."""
    with server(b"") as (url, _):
        return url


def test_download_that_breaks_off_continues_where_it_was(tmp_path):
    with server(ARCHIVE, cut=150_000) as (url, ranges):
        download.archive([url], SHA256, tmp_path / "folder")
    assert ranges == [None, "bytes=150000-"]
    assert (tmp_path / "folder" / "data_batch_1.bin").stat().st_size == 200_000
    assert left(tmp_path) == ["folder"]


def test_download_continues_at_the_next_address(tmp_path):
    part = tmp_path / "folder.tar.gz.part"
    part.write_bytes(ARCHIVE[:1000])
    with server(ARCHIVE) as (url, ranges):
        download.archive([nowhere(), url], SHA256, tmp_path / "folder")
    assert ranges == ["bytes=1000-"]


def test_wrong_archive_is_refused_and_the_next_address_tried(tmp_path):
    wrong = b"x" + ARCHIVE[1:]
    with server(wrong) as (bad, _), server(ARCHIVE) as (good, _):
        with pytest.raises(UserError, match=r"refused.*SHA-256"):
            download.archive([bad], SHA256, tmp_path / "folder")
        assert not left(tmp_path)
        download.archive([bad, good], SHA256, tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()


def test_truncated_archive_is_refused(tmp_path):
    with server(ARCHIVE[:-10]) as (url, _), pytest.raises(UserError, match=r"refused.*SHA-256"):
        download.archive([url], SHA256, tmp_path / "folder")
    assert not left(tmp_path)


@pytest.mark.parametrize("stale", [b"stale", b"s" * len(ARCHIVE), b"s" * 2 * len(ARCHIVE)])
def test_part_of_another_file_is_begun_again_once(stale, tmp_path):
    part = tmp_path / "folder.tar.gz.part"
    part.write_bytes(stale)
    with server(ARCHIVE) as (url, ranges):
        download.archive([url], SHA256, tmp_path / "folder")
    assert ranges == [f"bytes={len(stale)}-", None]
    part.write_bytes(stale)
    with server(b"x" + ARCHIVE) as (url, ranges), pytest.raises(UserError, match="refused"):
        download.archive([url], SHA256, tmp_path / "other")
    assert ranges == [None]


def test_whole_part_needs_no_address(tmp_path):
    (tmp_path / "folder.tar.gz.part").write_bytes(ARCHIVE)
    download.archive([nowhere()], SHA256, tmp_path / "folder")
    assert left(tmp_path) == ["folder"]


def test_answer_without_end_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "LARGEST", 100_000)
    sizes = []
    monkeypatch.setattr(download, "_sha256", lambda part: sizes.append(download._size(part)))
    with server(bytes(10_000_000)) as (url, ranges), pytest.raises(UserError, match="refused"):
        download.archive([url], SHA256, tmp_path / "folder")
    assert len(ranges) == 1 and max(sizes) < 200_000


def test_of_two_downloads_at_once_one_waits_for_the_other(tmp_path):
    with server(ARCHIVE, cut=20_000) as (url, ranges), futures.ThreadPoolExecutor() as pool:
        both = [pool.submit(download.archive, [url], SHA256, tmp_path / "folder") for _ in range(2)]
        assert [one.result() for one in both] == [None, None]
    assert len(set(ranges)) == len(ranges)
    assert left(tmp_path) == ["folder"]


def test_no_answer_is_told_apart(tmp_path):
    with pytest.raises(download.NoAnswerError, match="refused"):
        download.archive([nowhere()], SHA256, tmp_path / "folder")


@pytest.fixture
def batches(tmp_path) -> Path:
    """A folder of batches in the official layout that are not the official ones."""
    folder = tmp_path / "batches"
    folder.mkdir()
    for name in data.CIFAR10_FILES:
        records = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.tobytes())
    return folder


def test_unverified_files_are_refused_or_named(batches):
    with pytest.raises(UserError, match=r"data_batch_1\.bin.*--accept-unverified"):
        data.cifar10(Options(Recipe(), data_dir=batches))
    got = data.cifar10(Options(Recipe(), data_dir=batches, accept_unverified=True))
    assert "not the official files" in got.label and "test_batch.bin" in got.label
    record = np.frombuffer((batches / "test_batch.bin").read_bytes()[:3073], np.uint8)
    assert got.test_labels[0] == record[0]
    np.testing.assert_array_equal(got.test_images[0, 0, 1], record[[2, 1026, 2050]])


def test_other_versions_of_cifar10_are_told_by_name(batches):
    for path in batches.iterdir():
        path.rename(path.with_suffix(""))
    with pytest.raises(UserError, match=rf"Python version.*{re.escape(download.URL)}"):
        data.cifar10(Options(Recipe(), data_dir=batches))


def test_validation_keeps_the_test_images_out():
    got = data.load(Options(Recipe(validation=True), dataset="synthetic"), print)
    whole = data.synthetic()
    assert got.split == "validation"
    assert len(got.train_images) + len(got.test_images) == len(whole.train_images)
    pixels = {image.tobytes() for image in whole.train_images}
    assert all(image.tobytes() in pixels for image in got.test_images)


def test_only_the_first_training_images_are_taken():
    got = data.load(Options(Recipe(train_images=100), dataset="synthetic"), print)
    np.testing.assert_array_equal(got.train_images, data.synthetic().train_images[:100])
    assert len(got.train_labels) == 100 and len(got.test_images) == 128
