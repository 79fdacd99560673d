"""Draws what caching saves and costs: three panels in one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditcast_runtime.starter.studio import LEAST_DECIBELS, Figures

_STYLES = {
    (True, False): ("TaylorSeer", "tab:blue", "o"),
    (True, True): ("TaylorSeer, true CFG", "tab:blue", "s"),
    (False, False): ("no TaylorSeer", "tab:orange", "o"),
    (False, True): ("no TaylorSeer, true CFG", "tab:orange", "s"),
}


def plot(found: list[Figures], recommended: str, path: Path) -> None:
    """Draw all figures; the recommended settings stand out."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - an optional dependency

    figure, (steps, likeness, gain) = plt.subplots(1, 3, figsize=(15, 4.5), layout="constrained")
    swept = [each for each in found if each.name.startswith("threshold")]
    for kind, style in _STYLES.items():
        group = [each for each in swept if _kind(each) == kind]
        _lines(steps, group, [each.cached_steps for each in group], style)
        _lines(likeness, group, [each.psnr for each in group], style)
    steps.set_ylabel(f"cached steps of {found[0].steps}")
    likeness.set_ylabel("PSNR to the uncached picture, mean, dB")
    for panel in (steps, likeness):
        thresholds = sorted({each.options["residual_diff_threshold"] for each in swept})
        panel.set_xscale("log")
        panel.set_xticks(thresholds, [f"{threshold:g}" for threshold in thresholds])
        panel.minorticks_off()
        panel.set_xlabel("residual_diff_threshold of the reference settings")
        panel.legend()
    _scatter(gain, found, recommended)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def _kind(figures: Figures) -> tuple[bool, bool]:
    return bool(figures.options["enable_taylorseer"]), figures.negative_prompt


def _lines(panel: Any, group: list[Figures], values: list[float], style: tuple[str, ...]) -> None:
    label, color, marker = style
    thresholds = [each.options["residual_diff_threshold"] for each in group]
    dashes = "--" if marker == "s" else "-"
    panel.plot(thresholds, values, dashes, color=color, marker=marker, label=label)


def _scatter(panel: Any, found: list[Figures], recommended: str) -> None:
    """Show speed against likeness, for all settings."""
    for each in found:
        _, color, marker = _STYLES[_kind(each)]
        chosen = each.name == recommended
        panel.scatter(
            1 / each.time_ratio,
            each.psnr,
            color="tab:red" if chosen else color,
            marker=marker,
            s=70 if chosen else 25,
            label=f"recommended: {each.name}" if chosen else None,
        )
    panel.axhline(LEAST_DECIBELS, color="grey", linewidth=1)
    panel.set_xlabel("times as fast as uncached")
    panel.set_ylabel("PSNR to the uncached picture, mean, dB")
    handles, labels = panel.get_legend_handles_labels()
    panel.legend(handles[:1], labels[:1])
