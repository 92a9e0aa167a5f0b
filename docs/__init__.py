"""The documentation that is made from data: `python -m docs` writes it."""
