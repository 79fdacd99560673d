"""Why a group of ranks is replaced by another: a closed set, so that each can be counted."""

from __future__ import annotations

import enum


class RestartCause(enum.StrEnum):
    """What ended a group; the explanation beside it says which rank, and more."""

    DIED = "died"
    """A rank's process ended."""
    DISCONNECTED = "disconnected"
    """A rank closed its channel and its process did not end."""
    SILENT = "silent"
    """A rank gave no sign of life."""
    LOAD_TIMEOUT = "load_timeout"
    """Loading showed no progress."""
    WARM_UP_TIMEOUT = "warm_up_timeout"
    """The warm-up took too long."""
    STEP_TIMEOUT = "step_timeout"
    """The preparation or a step took too long."""
    DECODE_TIMEOUT = "decode_timeout"
    """Decoding took too long."""
    VOTE_TIMEOUT = "vote_timeout"
    """Not all ranks came to the last vote."""
    INCONSISTENT = "inconsistent"
    """A rank holds, or says, something else than it must."""
    RELOAD = "reload"
    """None was lost: a change of the configuration takes new ranks."""
