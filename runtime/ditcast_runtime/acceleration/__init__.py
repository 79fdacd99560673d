"""The one place that calls cache-dit.

`accelerator` enables it on a pipeline, switches it between generations and reads its decisions;
`support` says beforehand what it cannot do; `cpu` lends it what it lacks without an accelerator.
"""

from ditcast_runtime.acceleration.accelerator import Accelerator, BlockList, SettingsDiffer

__all__ = ["Accelerator", "BlockList", "SettingsDiffer"]
