"""Direct preference optimization of a character model."""
