"""Programs that show the optimizers at work."""
