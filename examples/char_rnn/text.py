"""The text: where it is from, and the streams into which it is cut."""

import importlib
from pathlib import Path

import numpy as np

HELD_OUT = 0.05


def documentation() -> str:
    """Return the reference documentation that Python carries, every paragraph once.

    Topics repeat parts of each other, which must not be both learnt and held out.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise ValueError("this Python comes without pydoc_data: give a file as --text") from None
    return "\n\n".join(dict.fromkeys("\n\n".join(topics.values()).split("\n\n")))


def read(path: Path | None) -> str:
    """Return a file's text, or the documentation."""
    try:
        return documentation() if path is None else path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--text must be a file in UTF-8, got {path}: {error}") from None


def split(text: str) -> tuple[str, str]:
    """Return what is learnt of a text, and its end, which is held out."""
    place = round(len(text) * (1 - HELD_OUT))
    return text[:place], text[place:]


def encode(text: str, alphabet: str) -> np.ndarray:
    """Return the place of every character in the alphabet."""
    places = {character: place for place, character in enumerate(alphabet)}
    unknown = "".join(sorted({*text} - {*places}))
    if unknown:
        raise ValueError(f"the model's text has no {unknown!r}")
    return np.array([places[character] for character in text], np.int32)


def streams(characters: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a text into streams; return inputs and the characters that follow, [n, length, rows]."""
    updates = (len(characters) - 1) // (rows * length)
    if not updates:
        raise ValueError(
            f"--text is too short: {rows} rows of {length} characters and one more are needed "
            f"in a part of it, which has {len(characters)}"
        )
    size = rows * updates * length
    parts = (characters[first : first + size] for first in (0, 1))
    return tuple(part.reshape(rows, updates, length).transpose(1, 2, 0) for part in parts)
