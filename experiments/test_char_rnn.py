"""The study of the character model: its table is right, and it goes on where it was."""

import re

import numpy as np
import pytest

from examples.char_rnn import char_rnn as example
from experiments import char_rnn


def test_the_table_has_means_spreads_and_differences_of_the_same_seed():
    first = np.array([[3.0, 2.0], [3.0, 2.2]])
    lines = char_rnn.table({"ours": first, "theirs": np.add(first, [[0.5, 0.1], [0.7, 0.3]])})
    assert lines[2] == "| ours | 2 | 3.000 ± 0.000 | 2.100 ± 0.141 | – |"
    assert lines[3] == "| theirs | 2 | 3.600 ± 0.141 | 2.300 ± 0.283 | 0.200 ± 0.141 |"


@pytest.mark.slow
def test_a_second_run_trains_nothing_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(char_rnn.text, "read", lambda _: "The cat sat on the mat. " * 40)
    small = {"units": 4, "batch": 2, "length": 10}
    options = example.Options
    monkeypatch.setattr(example, "Options", lambda **given: options(**small, **given))
    study = lambda: char_rnn.study(tmp_path, tmp_path / "runs", 1, 2)  # noqa: E731
    study()
    page = (tmp_path / "char_rnn.md").read_text("utf-8")
    assert all(f"| {rule} | 1 | " in page for rule in char_rnn.RULES)
    assert (tmp_path / "char_rnn.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("epoch 1:") == len(char_rnn.RULES)
    study()
    assert (tmp_path / "char_rnn.md").read_text("utf-8") == page
    assert capsys.readouterr().out.count("epoch 1:") == 0


@pytest.mark.parametrize("flag", ["--seeds", "--epochs"])
def test_a_wrong_option_is_refused(flag, capsys, tmp_path):
    with pytest.raises(SystemExit, match="2"):
        char_rnn.main(["--results", str(tmp_path), flag, "0"])
    assert re.search(f"{flag} must be at least 1, got 0", capsys.readouterr().err)
    assert not [*tmp_path.iterdir()]
