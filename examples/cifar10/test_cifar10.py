"""The example's promises, on made-up data and a server of our own."""

import contextlib
import functools
import hashlib
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import platformdirs
import pytest
from jax import lax

import optax_rmsprop
from examples.cifar10 import (
    augment,
    checkpoint,
    configs,
    data,
    download,
    loop,
    optimizer,
    report,
    runs,
    train,
)
from examples.cifar10 import main as cli
from examples.cifar10 import model as models
from examples.cifar10.configs import Options, Recipe, UserError

RECIPE = Recipe(epochs=2, batch_size=32, widths=(24, 24, 24))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    loop.train_and_evaluate(RECIPE, data.synthetic(), workdir, resume=False)
    return workdir


def rows(workdir: Path) -> list[dict]:
    # The clock is no part of what repeats.
    return [
        {k: v for k, v in row.items() if "second" not in k} for row in report.read_metrics(workdir)
    ]


def latest(workdir: Path) -> train.Carry:
    _, like = train.create(RECIPE, data.synthetic(), optimizer.optimizer(RECIPE, 1))
    with checkpoint.checkpoints(workdir) as checkpointer:
        return checkpoint.restore(checkpointer, like)[0]


def test_loss_falls_and_files_are_left(finished):
    steps = [row for row in rows(finished) if row["kind"] == "train"]
    assert steps[-1]["loss"] < 0.95 * steps[0]["loss"]  # smoothed labels keep it above 1.6
    result = rows(finished)[-1]
    assert result["kind"] == "result" and result["accuracy"] > 0.5
    assert all(row["data"] == "synthetic" for row in rows(finished))
    assert json.loads((finished / "config.json").read_text())["epochs"] == 2
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_resumed_run_equals_uninterrupted_one_bit_for_bit(finished, tmp_path, monkeypatch):
    start = report.Progress.start

    def interrupt(progress, epoch):
        if epoch == 1:
            raise KeyboardInterrupt
        start(progress, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(report.Progress, "start", interrupt)
        loop.train_and_evaluate(RECIPE, data.synthetic(), tmp_path, resume=False)
    loop.train_and_evaluate(RECIPE, data.synthetic(), tmp_path, resume=True)
    assert rows(tmp_path) == rows(finished)
    chex.assert_trees_all_equal(latest(tmp_path), latest(finished))


def test_resume_refuses_another_config_and_a_folder_without_a_run(finished, tmp_path):
    other = configs.Recipe(epochs=3, batch_size=32, widths=(24, 24, 24))
    with pytest.raises(UserError, match="epochs was 2 and is now 3"):
        loop.train_and_evaluate(other, data.synthetic(), finished, resume=True)
    with pytest.raises(UserError, match="already holds a run"):
        loop.train_and_evaluate(RECIPE, data.synthetic(), finished, resume=False)
    with pytest.raises(UserError, match="no run to resume"):
        loop.train_and_evaluate(RECIPE, data.synthetic(), tmp_path, resume=True)


def test_loss_that_is_not_finite_stops_with_step_and_learning_rate():
    logs = train.Logs(np.array([2.0, np.nan]), np.zeros(2), np.array([0.1, 0.25]))
    with pytest.raises(loop.DivergedError, match=r"nan at step 8, .* 0\.25"):
        loop.check_finite(logs, epoch=3)


def some_steps(tx: optax.GradientTransformation, widths=(24, 24, 24), batch_size=16):
    """Return a training step, where it starts, and two batches."""
    made_up = data.synthetic(2 * batch_size, 1)
    recipe = Recipe(widths=widths, batch_size=batch_size)
    graphdef, carry = train.create(recipe, made_up, tx)
    images = made_up.train_images.reshape(2, batch_size, 32, 32, 3)
    labels = made_up.train_labels.reshape(2, batch_size)
    return train.make_step(graphdef, tx, recipe), carry, (jnp.asarray(images), jnp.asarray(labels))


def test_rmsprop_with_a_large_eps_is_sgd():
    root, momentum = 1e6, {"momentum": 0.85, "nesterov": True}
    ours = optax_rmsprop.rmsprop(0.1 * root, eps=root**2, **momentum)
    params = []
    for tx in (ours, optax.sgd(0.1, **momentum)):
        step, carry, batches = some_steps(tx)
        params.append(jax.jit(functools.partial(lax.scan, step))(carry, batches)[0].params)
    chex.assert_trees_all_close(*params, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a promise for CPUs")
def test_step_in_a_scan_costs_no_more_than_a_step():
    step, carry, batches = some_steps(optax_rmsprop.rmsprop(1e-3), (32, 64, 64), batch_size=32)
    one = jax.jit(step)
    two = jax.jit(functools.partial(lax.scan, step))
    first = jax.tree.map(lambda a: a[0], batches)

    def seconds(f, *args):
        began = time.perf_counter()
        jax.block_until_ready(f(*args))
        return time.perf_counter() - began

    seconds(one, carry, first), seconds(two, carry, batches)
    # Noise only adds, so the smallest of several is the estimate, and more of them settle it.
    best_one = best_two = np.inf
    for _ in range(20):
        best_one = min(best_one, seconds(one, carry, first))
        best_two = min(best_two, seconds(two, carry, batches) / 2)
        if best_two <= 1.3 * best_one:
            return
    pytest.fail(f"{best_two:.4f} s a step in a scan, {best_one:.4f} s a step alone")


@pytest.mark.parametrize(("batch", "size"), [(8, 7), (6, 4), (5, 3)])
def test_conv3x3_has_the_automatic_gradient(batch, size):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, size, size, 3))
    kernel = jax.random.normal(keys[1], (3, 3, 3, 5))
    dy = jax.random.normal(keys[2], (batch, size, size, 5))
    y, gradient = jax.vjp(models.conv3x3, x, kernel)
    y_auto, gradient_auto = jax.vjp(models.convolve, x, kernel)
    chex.assert_trees_all_equal(y, y_auto)
    chex.assert_trees_all_close(gradient(dy), gradient_auto(dy), rtol=1e-5, atol=1e-5)


def test_whitened_patches_have_unit_variance_and_no_correlation():
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), np.uint8)
    images = ((images.astype(int) + np.roll(images, 1, axis=2)) // 2).astype(np.uint8)
    mean, std, kernel = models.whitening(images, regularizer=0)
    x = (images / 255 - mean) / std
    y = models.convolve(jnp.float32(x), jnp.float32(kernel), "VALID").reshape(-1, 24)
    np.testing.assert_allclose(y[:, :12], -y[:, 12:], atol=1e-5)
    np.testing.assert_allclose(y[:, :12].T @ y[:, :12] / len(y), np.eye(12), atol=1e-3)


def test_translate_is_a_crop_of_the_reflected_image_then_a_flip():
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    rows, columns, flip = np.array([-2, 0, 1, 2]), np.array([2, 0, -1, 1]), np.arange(4) % 2 == 1
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = [
        p[2 + i : 10 + i, 2 + j : 10 + j] for p, i, j in zip(padded, rows, columns, strict=True)
    ]
    want = [crop[:, ::-1] if f else crop for crop, f in zip(crops, flip, strict=True)]
    got = augment.translate(jnp.asarray(images), jnp.asarray(rows), jnp.asarray(columns), flip)
    np.testing.assert_array_equal(got, np.stack(want))


def test_every_image_is_seen_both_ways_in_two_epochs():
    even, odd, next_even = (augment.alternating_flip(jax.random.key(0), 100, e) for e in range(3))
    np.testing.assert_array_equal(even, ~odd)
    np.testing.assert_array_equal(even, next_even)
    assert 30 < even.sum() < 70


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


def nowhere() -> str:
    """Return an address where nothing listens."""
    with server(b"") as (url, _):
        return url


def test_download_that_breaks_off_continues_where_it_was(tmp_path):
    with server(ARCHIVE, cut=150_000) as (url, ranges):
        download.archive([url], SHA256, tmp_path / "folder")
    assert ranges == [None, "bytes=150000-"]
    assert (tmp_path / "folder" / "data_batch_1.bin").stat().st_size == 200_000
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


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
        assert not list(tmp_path.iterdir())
        download.archive([bad, good], SHA256, tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()


def test_truncated_archive_is_refused(tmp_path):
    with server(ARCHIVE[:-10]) as (url, _), pytest.raises(UserError, match=r"refused.*SHA-256"):
        download.archive([url], SHA256, tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def test_no_answer_is_told_apart(tmp_path):
    with pytest.raises(download.NoAnswerError, match="refused"):
        download.archive([nowhere()], SHA256, tmp_path / "folder")


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "URL", nowhere())
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")


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


def test_digits_stand_in_where_no_network_answers(no_network, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(runs, "train_and_evaluate", lambda *args: trained.append(args) or {})
    monkeypatch.setattr(runs, "show", lambda _: None)
    assert cli.main(["--workdir", str(tmp_path / "run")]) == 0
    assert trained[0][1].label == "scikit-learn digits"
    assert "handwritten digits instead of CIFAR-10" in capsys.readouterr().out


def test_unverified_files_are_refused_or_named(batches):
    with pytest.raises(UserError, match=r"data_batch_1\.bin.*--accept-unverified"):
        data.cifar10(Options(Recipe(), data_dir=batches))
    got = data.cifar10(Options(Recipe(), data_dir=batches, accept_unverified=True))
    assert "UNVERIFIED" in got.label and "test_batch.bin" in got.label
    record = np.frombuffer((batches / "test_batch.bin").read_bytes()[:3073], np.uint8)
    assert got.test_labels[0] == record[0]
    np.testing.assert_array_equal(got.test_images[0, 0, 1], record[[2, 1026, 2050]])


def test_validation_keeps_the_test_images_out():
    got = data.load(Options(Recipe(validation=True), dataset="synthetic"), print)
    whole = data.synthetic()
    assert got.split == "validation"
    assert len(got.train_images) + len(got.test_images) == len(whole.train_images)
    pixels = {image.tobytes() for image in whole.train_images}
    assert all(image.tobytes() in pixels for image in got.test_images)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "cifar10"], "cannot be reached"),
        (["--dataset", "cifar10", "--offline"], "not in the cache"),
        (["--data-dir", "missing"], "is not a folder"),
        (["--data-dir", "."], "cannot read"),
        (["--epochs", "0"], "--epochs must be at least 1"),
        (["--decay", "1"], "--decay must be"),
        (["--resume"], "--resume needs"),
        (["--results", "table.md"], "--results is the table over"),
        (["--results", "missing/table.md", "--seeds", "2"], "its folder does not exist"),
        (["--resume", "--workdir", "missing", "--dataset", "synthetic"], "no run to resume"),
        (["--workdir", __file__, "--dataset", "synthetic"], "File exists"),
        (["--batch-size", "1000", "--dataset", "synthetic"], "more than all training images"),
    ],
)
def test_mistake_is_one_line_and_exit_code_2(
    flags, message, no_network, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(flags) == 2
    assert message in capsys.readouterr().err


def test_wrong_flag_is_exit_code_2(capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--epoch", "1"])
    assert "--epochs" in capsys.readouterr().err


def test_command_line_does_not_wait_for_jax():
    code = "import sys, examples.cifar10.main; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_table_over_seeds_has_mean_spread_and_command():
    results = [
        {"seed": s, "accuracy": a, "accuracy_views": a, "seconds": 1.0, "epoch": 2}
        for s, a in ((0, 0.5), (1, 0.6))
    ]
    arguments = ["--seeds", "2", "--data-dir", "/a/b"]
    text = runs.summary(results, data.synthetic(1, 1), {"device": "cpu"}, arguments)
    assert "--seeds 2 --data-dir b" in text and "n = 2" in text and "- device: cpu" in text
    assert "| **mean** | 55.00 |" in text and "| standard deviation | 7.07 |" in text
