"""A character model: `python -m examples.char_rnn --help`."""

import sys

import tyro

from examples.char_rnn import char_rnn

if __name__ == "__main__":
    sys.exit(char_rnn.main(tyro.cli(char_rnn.Options)))
