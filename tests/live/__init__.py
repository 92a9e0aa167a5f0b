"""Tests against the frameworks themselves: each runs where its framework is installed."""

import os

# Before anything imports Keras.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
