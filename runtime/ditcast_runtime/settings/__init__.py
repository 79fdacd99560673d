"""The schema of cache-dit's settings in the domain's own words, without torch or cache-dit.

The service validates with it, and it travels to the ranks inside messages; `acceleration` of the
runtime is the one place that makes cache-dit's own objects of it. Names are cache-dit's in lower
snake case, with *degree* for its *size*; defaults are cache-dit's own.

`cache`, `parallelism`, `quantize`, `attention`: the settings and what may be wrong with them.
`loading`, `warm_up`: what is fixed when the ranks load, and what they run first.
`document`, `files`: all that one cache-dit file holds, read and written. `problems`: findings.
"""

from ditcast_runtime.settings.attention import (
    CACHE_DIT_ATTENTION,
    DIFFUSERS_ATTENTION,
    check_attention_backend,
)
from ditcast_runtime.settings.cache import (
    DMD,
    CacheMethod,
    CacheSettings,
    Calibrator,
    DBCache,
    DBPrune,
    Disabled,
    FoCa,
    TaylorSeer,
    cache_options,
    calibrator_options,
)
from ditcast_runtime.settings.cache_checks import MASK_POLICIES, check_cache
from ditcast_runtime.settings.document import (
    Acceleration,
    dump_acceleration,
    parse_acceleration,
)
from ditcast_runtime.settings.files import MAX_FILE_BYTES, load_acceleration
from ditcast_runtime.settings.loading import Compile, LoadingSettings, Offload, check_loading
from ditcast_runtime.settings.parallelism import (
    AUTO_DEGREE,
    ParallelismSettings,
    check_parallelism,
    parallelism_options,
    resolve_parallelism,
)
from ditcast_runtime.settings.problems import Problem, ProblemKind, SettingsError
from ditcast_runtime.settings.quantize import (
    ComponentQuantization,
    QuantizeSettings,
    SvdqKwargs,
    check_quantize,
    quantize_options,
)
from ditcast_runtime.settings.warm_up import WarmUp

__all__ = [
    "AUTO_DEGREE",
    "CACHE_DIT_ATTENTION",
    "DIFFUSERS_ATTENTION",
    "DMD",
    "MASK_POLICIES",
    "MAX_FILE_BYTES",
    "Acceleration",
    "CacheMethod",
    "CacheSettings",
    "Calibrator",
    "Compile",
    "ComponentQuantization",
    "DBCache",
    "DBPrune",
    "Disabled",
    "FoCa",
    "LoadingSettings",
    "Offload",
    "ParallelismSettings",
    "Problem",
    "ProblemKind",
    "QuantizeSettings",
    "SettingsError",
    "SvdqKwargs",
    "TaylorSeer",
    "WarmUp",
    "cache_options",
    "calibrator_options",
    "check_attention_backend",
    "check_cache",
    "check_loading",
    "check_parallelism",
    "check_quantize",
    "dump_acceleration",
    "load_acceleration",
    "parallelism_options",
    "parse_acceleration",
    "quantize_options",
    "resolve_parallelism",
]
