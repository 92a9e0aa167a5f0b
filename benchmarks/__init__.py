"""Measurements, as commands that write their tables."""
