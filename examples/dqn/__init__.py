"""Deep Q-learning, many seeds in one program."""
