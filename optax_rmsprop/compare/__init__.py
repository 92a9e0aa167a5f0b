"""Why two runs part: the first number that differs, and the smallest changes that explain it."""

from ._compare import runs as runs
from ._compare import steps as steps
from ._report import Cause as Cause
from ._report import Change as Change
from ._report import Difference as Difference
from ._report import First as First
