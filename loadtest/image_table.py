"""The lines that describe an image run while a comparison goes on."""

from typing import Any


def phase_lines(run: dict[str, Any]) -> list[str]:
    """One line for each phase of a run."""
    return [f"{name}, {_line(phase)}" for name, phase in run["phases"].items()]


def _line(phase: dict[str, Any]) -> str:
    summary = phase["summary"]
    others = f"{summary['num_failed']} failed, others {phase['cpu']['others']:.1%} of CPU"
    if "images_s" in summary:
        latency = summary["latency_ms"] or {}
        return (
            f"{summary['images_s']:.2f} images/s, latency p50 {latency.get('p50', 0):.0f} ms, "
            f"p99 {latency.get('p99', 0):.0f} ms, {others}"
        )
    gaps = summary["itl_ms"] or {}
    beside = ""
    if images := phase.get("images"):
        beside = f", {images['summary']['images_s']:.2f} images/s"
    return (
        f"{summary['output_tok_s']:.1f} tok/s, ITL p50 {gaps.get('p50', 0):.1f} ms, "
        f"p99 {gaps.get('p99', 0):.1f} ms{beside}, {others}"
    )
