"""The measurements. Each returns what docs/sampling.json holds under its name."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from tools.sampling_study.accuracy import accuracy
from tools.sampling_study.material import CLAIMS, OPENINGS, PASSAGES, QUESTIONS, Question
from tools.sampling_study.server import Server, Written, together

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.6, 2.0)
HOT = 1.3
COLD = 0.3
HOT_SAMPLERS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "top_k 40": {"top_k": 40},
    "top_p 0.95": {"top_p": 0.95},
    "top_p 0.8": {"top_p": 0.8},
    "min_p 0.05": {"min_p": 0.05},
    "min_p 0.1": {"min_p": 0.1},
    "typical_p 0.9": {"typical_p": 0.9},
    "top_n_sigma 1": {"top_n_sigma": 1.0},
    "dynatemp 0.7": {"dynatemp_range": 0.7},
    "mirostat tau 4": {"mirostat": 2, "mirostat_tau": 4.0},
    "min_p 0.05 before temperature": {"min_p": 0.05, "samplers": ["min_p", "temperature"]},
    "min_p 0.05, XTC": {"min_p": 0.05, "xtc_probability": 0.5, "xtc_threshold": 0.1},
}
COLD_SAMPLERS: Mapping[str, dict[str, Any]] = {
    "none": {},
    "repetition_penalty 1.1": {"repetition_penalty": 1.1},
    "repetition_penalty 1.3": {"repetition_penalty": 1.3},
    "frequency_penalty 0.5": {"frequency_penalty": 0.5},
    "presence_penalty 1": {"presence_penalty": 1.0},
    "DRY 0.8": {"dry_multiplier": 0.8},
    "XTC 0.5": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
}
NUM_ANSWERS = 8
MEANING_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SHOWN_THRESHOLD = 0.7


async def temperature(server: Server) -> dict[str, Any]:
    """Texts at each temperature, and how expected texts by people are to the model."""
    rows = [await _row(server, temperature=t) | {"temperature": t} for t in TEMPERATURES]
    written = await together(server.surprise_of(opening) for opening in OPENINGS)
    return {"rows": rows, "written_surprise": fmean(written)}


async def hot(server: Server) -> dict[str, Any]:
    """Samplers at a temperature that is too high without them."""
    return {
        name: await _row(server, temperature=HOT, **fields) for name, fields in HOT_SAMPLERS.items()
    }


async def cold(server: Server) -> dict[str, Any]:
    """Remedies against loops at a low temperature."""
    return {
        name: await _row(server, temperature=COLD, **fields)
        for name, fields in COLD_SAMPLERS.items()
    }


async def signals(server: Server) -> dict[str, Any]:
    """The area under the ROC curve of each signal, as a test for wrong answers."""
    spread = {t: await _entropies(server, t) for t in MEANING_THRESHOLDS}
    greedy = await together(server.answers(q.text, 1, temperature=0.0) for q in QUESTIONS)
    firsts = [answer["choices"][0] for answer in greedy]
    wrong = [
        not _is_right(question, choice["message"]["content"] or "")
        for question, choice in zip(QUESTIONS, firsts, strict=True)
    ]
    told = [choice["uncertainty"] for choice in firsts]
    by_name = {
        "mean surprise": [-one["mean_logprob"] for one in told],
        "mean entropy": [one["mean_entropy"] for one in told],
        "mean varentropy": [one["mean_varentropy"] for one in told],
    } | {f"semantic entropy at {t:g}": values for t, values in spread.items()}
    return {
        "num_questions": len(QUESTIONS),
        "num_wrong": sum(wrong),
        "auroc": {name: _auroc(values, wrong) for name, values in by_name.items()},
        "questions": [
            {
                "question": question.text,
                "answer": choice["message"]["content"],
                "is_wrong": is_wrong,
                "surprise": -one["mean_logprob"],
                "semantic_entropy": entropy,
            }
            for question, choice, is_wrong, one, entropy in zip(
                QUESTIONS, firsts, wrong, told, spread[SHOWN_THRESHOLD], strict=True
            )
        ],
    }


async def groundedness(server: Server) -> dict[str, Any]:
    """The risk named for each claim whose truth is known."""
    found = await together(server.groundedness(c.text, PASSAGES[c.passage]) for c in CLAIMS)
    named = [
        (claim.truth, one["risk"] or "grounded") for claim, one in zip(CLAIMS, found, strict=True)
    ]
    return {
        "table": [
            {"truth": truth, "named": name, "claims": num}
            for (truth, name), num in sorted(Counter(named).items())
        ],
        "claims": [
            {
                "text": claim.text,
                "truth": claim.truth,
                "intrinsic_risk": one["intrinsic_risk"],
                "extrinsic_risk": one["extrinsic_risk"],
                "similarity": one["similarity"],
            }
            for claim, one in zip(CLAIMS, found, strict=True)
        ],
    }


MEASUREMENTS = {
    one.__name__: one for one in (temperature, accuracy, hot, cold, signals, groundedness)
}


async def _entropies(server: Server, threshold: float) -> list[float]:
    """The semantic entropy of several answers to each question, the same ones at any threshold."""
    asked = {"temperature": 1.0, "semantic_threshold": threshold}
    found = await together(server.answers(q.text, NUM_ANSWERS, **asked) for q in QUESTIONS)
    return [answer["semantic_entropy"]["entropy"] for answer in found]


async def _row(server: Server, **sampling: Any) -> dict[str, Any]:
    texts = await together(server.go_on(opening, **sampling) for opening in OPENINGS)
    topics = await together(
        server.similarity(opening, written.text)
        for opening, written in zip(OPENINGS, texts, strict=True)
    )
    starts = [written.loop_start for written in texts if written.loop_start is not None]
    return {
        "looping": len(starts) / len(texts),
        "looped_tokens": fmean(written.looped for written in texts),
        "loop_start": median(starts) if starts else None,
        "surprise": fmean(written.surprise for written in texts),
        "entropy": fmean(written.entropy for written in texts),
        "topic": fmean(topics),
        "distinct": _distinct(texts),
    }


def _distinct(texts: Sequence[Written]) -> float:
    """The mean share of distinct word pairs in a text."""
    shares = []
    for written in texts:
        words = re.findall(r"\w+", written.text.lower())
        pairs = list(itertools.pairwise(words))
        shares.append(len(set(pairs)) / max(1, len(pairs)))
    return fmean(shares)


def _is_right(question: Question, answer: str) -> bool:
    words = re.findall(r"\w+", answer.lower())
    text = f" {' '.join(words)} "
    return any(f" {wanted} " in text for wanted in question.answers)


def _auroc(values: Sequence[float], is_wrong: Sequence[bool]) -> float:
    """The share of pairs of a wrong and a right answer in which the wrong one has more."""
    wrong = [value for value, bad in zip(values, is_wrong, strict=True) if bad]
    right = [value for value, bad in zip(values, is_wrong, strict=True) if not bad]
    wins = sum((w > r) + 0.5 * (w == r) for w in wrong for r in right)
    return wins / (len(wrong) * len(right))
