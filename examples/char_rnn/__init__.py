"""A character model, trained as char-rnn trains."""
