"""Optimizer states of other frameworks: from their dictionaries of arrays, and back.

    quantity        here                torch              Keras 3 (tf.keras 2)      TensorFlow 1
    ν               nu, or var + |mu|²  square_avg         velocity (rms)            RMSProp
    mean            mu                  grad_avg           average_gradient (mg)     RMSProp_1
    momentum        trace               momentum_buffer    momentum                  the last one
    steps made      count               step               iteration (iter)          (global_step)

A buffer that contains the learning rate holds steps: Keras's and TensorFlow's +b, this package's
and Optax's −b. One that does not holds directions, as PyTorch's does. The order of the links in a
state says which it is, through nested chains, masks, partitions and wrappers, and the rate is moved
in or out. Optax's own links for a rate leave no name. One between Optax's division and the buffer
is taken for the rate, as `optax.rmsprop` has it; where such a link may stand on either side of the
buffer, or is between a division of this package and the buffer, `momentum="steps"` or
`"directions"` tells. A momentum before the division is refused.

The function that converts the weights converts the accumulators: it maps a dictionary of named
arrays to a tree like the parameters (`from_*`), or back (`to_*`). `layout` makes both for the usual
layers of PyTorch and Flax. Nothing is imported: arrays are what NumPy understands, and copies in
NumPy's come out, which the other framework may write to.

States are known by their classes: this package's, and those of Optax's RMSprop, momentum and
schedules. A state is filled completely, but for what it masks, or an error names the parameter and
nothing is returned. A state with arrays that the other framework has no place for is refused.
"""

from .keras import from_keras as from_keras
from .keras import to_keras as to_keras
from .layout import Layout as Layout
from .layout import layout as layout
from .tensorflow1 import from_tensorflow1 as from_tensorflow1
from .tensorflow1 import to_tensorflow1 as to_tensorflow1
from .torch import from_torch as from_torch
from .torch import to_torch as to_torch
from .transfer import Transferred as Transferred
from .transfer import transfer as transfer
