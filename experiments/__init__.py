"""Studies of many runs, each a command that writes a table and a picture into `results/`."""
