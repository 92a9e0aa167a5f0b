"""RMSprop for JAX: small composable Optax transformations, finite in every precision."""

from . import dialects as dialects
from . import interop as interop
from . import sharding as sharding
from . import storage as storage
from ._chain import ScaleByLearningRateState as ScaleByLearningRateState
from ._chain import TraceState as TraceState
from ._chain import scale_by_learning_rate as scale_by_learning_rate
from ._chain import trace as trace
from ._rms import ScaleByRmsState as ScaleByRmsState
from ._rms import ScaleByStddevState as ScaleByStddevState
from ._rms import scale_by_rms as scale_by_rms
from ._rms import scale_by_stddev as scale_by_stddev
from ._rmsprop import rmsprop as rmsprop
from ._rmsprop import rmspropw as rmspropw

__version__ = "0.1.0"
