"""Names of attention implementations, and where each can be used.

A test compares both lists with the installed libraries. Whether an implementation's package is
installed is only known to the ranks, which try it before they serve.
"""

from __future__ import annotations

from ditcast_runtime.settings.problems import Problem, nearest, shown

CACHE_DIT_ATTENTION = (
    "native", "flash", "flash_varlen", "sage", "sage3", "_flash_3", "_sdpa_cudnn", "ffpa",
    "ffpa_fp8", "ffpa_fp4", "ffpa_fp8_per_block", "_native_npu", "_npu_fia", "_mindiesd_laser",
)  # fmt: skip
"""cache-dit's own: the only ones that context parallelism can use."""

DIFFUSERS_ATTENTION = (
    "flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub", "_flash_3",
    "_flash_varlen_3", "_flash_3_hub", "_flash_3_varlen_hub", "aiter", "flex", "native",
    "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu",
    "_native_xla", "sage", "sage_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda",
    "_sage_qk_int8_pv_fp8_cuda_sm90", "_sage_qk_int8_pv_fp16_cuda",
    "_sage_qk_int8_pv_fp16_triton", "xformers",
)  # fmt: skip
"""Those of diffusers."""

CPU_ATTENTION = ("native", "_native_math", "_native_flash", "flex")
"""Those that run without an accelerator."""


def check_attention_backend(
    name: str | None,
    *,
    prefix: str = "attention_backend",
    context_parallel: bool = False,
    accelerator: bool = True,
) -> tuple[Problem, ...]:
    """Check the name of an attention implementation; None, the pipeline's own choice, is fine.

    Args:
        name: The name.
        prefix: Path of the field in the request.
        context_parallel: Whether the ranks split the sequence.
        accelerator: Whether the ranks run on more than a CPU.
    """
    known = tuple(dict.fromkeys((*CACHE_DIT_ATTENTION, *DIFFUSERS_ATTENTION)))
    if name is None:
        return ()
    if name not in known:
        reason = f"{shown(name)} is no attention implementation{nearest(name, known)}"
        return (Problem(prefix, reason),)
    if context_parallel and name not in CACHE_DIT_ATTENTION:
        reason = f"{name} does not work with context parallelism: use one of cache-dit's own"
        return (Problem(prefix, reason, "unsupported"),)
    if not accelerator and name not in CPU_ATTENTION:
        reason = f"{name} needs an accelerator: use native"
        return (Problem(prefix, reason, "unsupported"),)
    return ()
