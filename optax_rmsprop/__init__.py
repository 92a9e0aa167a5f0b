"""RMSprop for JAX: small composable Optax transformations, finite in every precision."""

from . import compare as compare
from . import denominators as denominators
from . import dialects as dialects
from . import interop as interop
from . import probe as probe
from . import recipes as recipes
from . import recording as recording
from . import retuning as retuning
from . import sharding as sharding
from . import storage as storage
from ._rmsprop import rmsprop as rmsprop
from ._rmsprop import rmspropw as rmspropw
from .links import AddDecayedWeightsState as AddDecayedWeightsState
from .links import EmaState as EmaState
from .links import ScaleByLearningRateState as ScaleByLearningRateState
from .links import ScaleByRmsState as ScaleByRmsState
from .links import ScaleByStddevState as ScaleByStddevState
from .links import TraceState as TraceState
from .links import add_decayed_weights as add_decayed_weights
from .links import chain as chain
from .links import ema as ema
from .links import scale_by_learning_rate as scale_by_learning_rate
from .links import scale_by_rms as scale_by_rms
from .links import scale_by_stddev as scale_by_stddev
from .links import trace as trace

__version__ = "0.1.0"
