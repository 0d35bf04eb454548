"""What a run leaves behind: metrics.json with its provenance, a report, a curve, a model card."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from distillkit.benchmark import bytes_on_disk
from distillkit.chat import encode_rows
from distillkit.decoding import position_limit
from distillkit.errors import UserError
from distillkit.evaluation import nll
from distillkit.models import count_parameters
from distillkit.provenance import provenance

Rows = Sequence[Mapping[str, Any]]
Metrics = dict[str, Any]

NAMES = {"teacher": "teacher", "distilled": "student, distilled", "labels": "student, labels only"}


# --- Data ---------------------------------------------------------------------------------------


def data_card(**parts: Rows) -> dict[str, Any]:
    """For each part: where it came from, the rows kept and refused, and a hash of what was kept."""
    return {name: _part(rows) for name, rows in parts.items() if len(rows)}


def _part(rows: Rows) -> dict[str, Any]:
    digest = hashlib.sha256()
    for row in rows:
        line = json.dumps(row["messages"], sort_keys=True, ensure_ascii=False, default=str)
        digest.update(line.encode("utf-8") + b"\n")
    refused = [str(each) for each in getattr(rows, "refused", [])]
    return {
        "source": getattr(rows, "source", "rows in memory"),
        "kept": len(rows),
        "refused": len(refused),
        "first_refused": refused[:5],
        "sha256": digest.hexdigest(),
    }


def split_off(dialogues: Any, *, share: float, most: int) -> tuple[Any, Any]:
    """(the rest, a random share of the conversations), the same on every call."""
    if len(dialogues) < 2:
        raise UserError(
            f"{dialogues.source} has 1 dialogue, and some are held out to choose the best step: "
            "give at least 2, or name others with --eval-data"
        )
    count = max(1, min(most, round(share * len(dialogues))))
    chosen = set(random.Random(0).sample(range(len(dialogues)), count))
    kept = [row for index, row in enumerate(dialogues) if index not in chosen]
    aside = [row for index, row in enumerate(dialogues) if index in chosen]
    held_out = dataclasses.replace(
        dialogues, rows=aside, source=f"{dialogues.source}, held out", refused=[]
    )
    return dataclasses.replace(dialogues, rows=kept), held_out


# --- Metrics ------------------------------------------------------------------------------------


def score(
    models: Mapping[str, PreTrainedModel], tokenizer: PreTrainedTokenizerBase, **parts: Rows
) -> dict[str, dict[str, dict[str, float]]]:
    """model -> part ("eval", "test", "test star") -> NLL per assistant token, perplexity, tokens.

    A part whose rows have several values of "source" is also scored for each of them.
    """
    groups = {}
    for name, rows in parts.items():
        if len(rows):
            groups[name] = list(rows)
        sources = sorted({str(row.get("source")) for row in rows if row.get("source")})
        for source in sources if len(sources) > 1 else []:
            groups[f"{name} {source}"] = [row for row in rows if row.get("source") == source]
    limits = [limit for limit in map(position_limit, models.values()) if limit]
    longest = min(limits, default=None)
    encoded = {
        name: encode_rows(tokenizer, rows, max_length=longest) for name, rows in groups.items()
    }
    return {
        role: {name: _score(model, rows) for name, rows in encoded.items()}
        for role, model in models.items()
    }


def _score(model: PreTrainedModel, encoded: list) -> dict[str, float]:
    result = nll(model, encoded)
    return {"nll": result.per_token, "perplexity": result.perplexity, "tokens": result.tokens}


def metrics(
    run: Mapping[str, Any],
    models: Mapping[str, PreTrainedModel],
    scores: Mapping[str, Any],
    histories: Mapping[str, list[dict[str, Any]]],
    *,
    seconds: float,
) -> Metrics:
    """All that is known of a run, ready for JSON."""
    return {
        **run,
        "models": {
            role: {"parameters": count_parameters(model), "scores": scores[role]}
            for role, model in models.items()
        },
        "curves": {role: curve(history) for role, history in histories.items()},
        "provenance": {
            **provenance(),
            "seed": run["settings"]["seed"],
            "seconds": round(seconds, 1),
        },
    }


def curve(history: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The held-out NLL at each evaluation, and the training losses at each entry of the log."""
    held_out = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    losses = {entry["step"]: entry for entry in history if "loss" in entry}
    kept = ("step", "loss", "soft_loss", "hard_loss")
    return {
        "steps": list(held_out),
        "eval_nll": list(held_out.values()),
        "training": [
            {key: entry[key] for key in kept if key in entry} for entry in losses.values()
        ],
    }


# --- What is written ----------------------------------------------------------------------------


def write(folder: Path, metrics: Metrics) -> None:
    """metrics.json, report.md and learning_curve.png beside a saved student."""
    from distillkit import plots

    role = next(iter(metrics["curves"]))
    metrics["models"][role]["bytes"] = bytes_on_disk(folder)
    curves = {arm: (curve["steps"], curve["eval_nll"]) for arm, curve in metrics["curves"].items()}
    teacher = metrics["models"].get("teacher")
    levels = {"teacher": teacher["scores"]["eval"]["nll"]} if teacher else None
    figure = plots.learning_curves(curves, title=_headline(metrics), levels=levels)
    figure.savefig(folder / "learning_curve.png")
    (folder / "report.md").write_text(_report(metrics), encoding="utf-8")
    text = json.dumps(metrics, indent=1, ensure_ascii=False) + "\n"
    (folder / "metrics.json").write_text(text, encoding="utf-8")


def best(curve: Mapping[str, list[Any]]) -> tuple[int, float]:
    """(step, NLL) of the best evaluation."""
    value = min(curve["eval_nll"])
    return curve["steps"][curve["eval_nll"].index(value)], value


def table(metrics: Metrics) -> str:
    """The numbers of a run, as a Markdown table."""
    parts = list(next(iter(metrics["models"].values()))["scores"])
    heads = ["model", "parameters", "best step", *(f"NLL, {_part_name(part)}" for part in parts)]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for role in sorted(metrics["models"], key=list(NAMES).index):
        model, curve = metrics["models"][role], metrics["curves"].get(role)
        step = f"{best(curve)[0]:,}" if curve else ""
        scores = [f"{model['scores'][part]['nll']:.3f}" for part in parts]
        lines.append([NAMES[role], f"{model['parameters']:,}", step, *scores])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _part_name(part: str) -> str:
    return part.replace("eval", "held out", 1)


def _headline(metrics: Metrics) -> str:
    role, curve = next(iter(metrics["curves"].items()))
    step, value = best(curve)
    return f"The {NAMES[role]}: best at step {step:,}, {value:.3f} nats per token"


def _report(metrics: Metrics) -> str:
    settings = "\n".join(f"| {name} | {value} |" for name, value in metrics["settings"].items())
    data = "\n".join(
        f"- {_part_name(name)}: {part['kept']:,} dialogues from {part['source']}, "
        f"{part['refused']:,} refused, sha256 {part['sha256'][:12]}…"
        for name, part in metrics["data"].items()
    )
    source, made = metrics["provenance"], metrics["provenance"]["machine"]
    return REPORT.format(
        headline=_headline(metrics),
        table=table(metrics),
        teacher=metrics["teacher"] or "none",
        student=metrics["student"],
        data=data,
        settings=settings,
        command=source["command"],
        date=source["date"],
        seconds=source["seconds"],
        cpu=made["cpu"],
        cores=made["cores"],
        versions=f"distillkit {source['distillkit']}, torch {made['torch']}",
        commit=source["commit"] or "not in git",
    )


def card(metrics: Metrics) -> str:
    """The model card of the student."""
    role, curve = next(iter(metrics["curves"].items()))
    step, value = best(curve)
    return CARD.format(
        kind=NAMES[role],
        student=metrics["student"],
        teacher=metrics["teacher"] or "none",
        source=metrics["data"]["train"]["source"],
        dialogues=metrics["data"]["train"]["kept"],
        parameters=metrics["models"][role]["parameters"],
        step=step,
        nll=value,
        perplexity=math.exp(value),
    )


REPORT = """\
# {headline}

{table}

NLL is in nats for each token that the assistant speaks, less is better; the best step was chosen on
the held-out conversations. One seed, one setting: for a claim, repeat it with others.

![Held-out NLL against training steps](learning_curve.png)

## Data

{data}

Teacher: {teacher}. Student: {student}.

## Settings

| setting | value |
| --- | --- |
{settings}

## How it was made

`{command}`

{date}, {seconds:,} seconds on {cores} cores of {cpu}; {versions}; commit {commit}.
"""

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---
# A dialogue model: {kind}

{parameters:,} parameters ({student}), trained on {dialogues:,} dialogues from {source}; teacher:
{teacher}. Best step {step:,}, where the NLL is {nll:.3f} nats per assistant token on held-out
dialogues (perplexity {perplexity:.2f}). `report.md` and `metrics.json` say how it was made.

Talk to it with `distillkit chat --model <this folder>`, or load it with
`AutoModelForCausalLM.from_pretrained` and its tokenizer's chat template.
"""
