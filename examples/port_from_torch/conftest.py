"""Without torch its side of the example cannot be imported, not even to look for doctests."""

import importlib.util

collect_ignore = [] if importlib.util.find_spec("torch") else ["theirs.py"]
