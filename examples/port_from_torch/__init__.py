"""A PyTorch run, carried over and continued in Flax."""
