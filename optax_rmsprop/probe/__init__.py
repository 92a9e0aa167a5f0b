"""Which RMSprop is it? The rule of a function, or of a recorded run."""

from ._design import identify as identify
from ._log import identify_log as identify_log
from ._report import Report as Report
