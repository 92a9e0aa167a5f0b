"""Optimizer states of other frameworks: from their dictionaries of arrays, and back.

    quantity        here                torch              Keras 3 (tf.keras 2)      TensorFlow 1
    ν               nu, or var + |mu|²  square_avg         velocity (rms)            RMSProp
    mean            mu                  grad_avg           average_gradient (mg)     RMSProp_1
    momentum        trace               momentum_buffer    momentum                  the last one
    steps made      count               step               iteration (iter)          (global_step)

A buffer that contains the learning rate holds steps: Keras's and TensorFlow's +b, this package's
and Optax's −b. One that does not holds directions, as PyTorch's does. The order of `trace` and
`scale_by_learning_rate` in a state says which it is, and the rate is moved in or out.

The function that converts the weights converts the accumulators: it maps a dictionary of named
arrays to a tree like the parameters (`from_*`), or back (`to_*`). `layout` makes both for the usual
layers of PyTorch and Flax. Nothing is imported: arrays are what NumPy understands, and NumPy's come
out. A state is filled completely, or an error names the parameter and nothing is returned.
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
