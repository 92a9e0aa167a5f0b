"""A long search speaks on a terminal, and nowhere else."""

import io
import sys
import time

import pytest

from optax_rmsprop.probe import _progress as progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@progress.told
def search(seconds):
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO(), None])
@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_what_is_said(stream, seconds, monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    monkeypatch.setattr(sys, "stderr", stream)
    before = len(stream.getvalue()) if stream else 0
    assert search(seconds) == seconds
    text = stream.getvalue()[before:] if stream else ""
    if not isinstance(stream, Terminal) or not seconds:
        assert text == ""
    else:
        assert text.startswith("\rsearch: rarer rules are tried, 0 s") and text.endswith("\r\033[K")


def test_an_error_ends_it(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with pytest.raises(TypeError):
        search("long")
    length = len(terminal.getvalue())
    time.sleep(0.05)
    assert len(terminal.getvalue()) == length
