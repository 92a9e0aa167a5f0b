"""Denominators for `eps_in_sqrt`: where ε stands beside the root of the second moment.

    scale_by_rms(eps_in_sqrt=denominators.eps_floor)

Each is a function `(root, square, eps) -> denominator`, as any that a user writes; `root` is the
square root with a safe derivative at 0.
"""

from ._rule import eps_floor as eps_floor
from ._rule import eps_inside as eps_inside
from ._rule import eps_outside as eps_outside
from ._rule import eps_subtracted as eps_subtracted
