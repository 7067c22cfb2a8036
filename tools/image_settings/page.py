"""The part of docs/evaluation.md that is written from docs/image_settings.json."""

from collections.abc import Mapping
from typing import Any

from loadtest.markdown import origin, table
from tools.image_settings.judging import SCORES

COMMAND = "python -m tools.image_settings page"


def sections(data: Mapping[str, Any]) -> dict[str, str]:
    """The text of each pair of marks."""
    return {"image settings": compared(data)}


def compared(data: Mapping[str, Any]) -> str:
    """A table with a row for each setting."""
    scores = data["settings"]
    first = next(iter(scores.values()))["scores"]
    shares = [_percent(first[name]["first"]) for name in SCORES]
    rows = [["*defaults*", shares[0], "", "", *shares[1:], ""]]
    for name, row in scores.items():
        deciding = row["scores"][SCORES[0]]
        rows.append(
            [
                name,
                _percent(deciding["second"]),
                _interval(deciding),
                f"{deciding['p_value']:.4f}",
                *(_interval(row["scores"][part]) for part in SCORES[1:]),
                f"{100 * row['changed']:.1f} %",
            ]
        )
    heads = ("", "all right", "difference", "p", *SCORES[1:], "pixels changed")
    asked = ", ".join(f"{name}: {first[name]['asked']}" for name in SCORES[1:])
    least = max(row["scores"][SCORES[0]]["detectable"] for row in scores.values())
    told = (
        f"{first[SCORES[0]]['asked']} prompts ({asked}). Differences are in percentage points. "
        f"With {len(scores)} comparisons, a p-value below {0.05 / len(scores):.4f} would be rare "
        f"even if no setting mattered. A true difference of {100 * least:.0f} points would have "
        "shown in 80 % of such comparisons, a smaller one in fewer."
    )
    return "\n\n".join([table(heads, rows, num_text_columns=1), told, origin(dict(data))])


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row["interval"]["low"], row["interval"]["high"]
    return f"{100 * row['difference']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
