"""The package on one GPU: whether it is right there, what an update costs, and a training."""
