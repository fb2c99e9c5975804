"""A GPT on bytes of text, for equally many of them under each rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from typing_extensions import override

import apical
from apical import data as texts
from apical.data import DataError, ImageData
from apical.data.text.files import is_text
from apical.papers.apical.language import LanguageTraining, Recipe
from apical.papers.claims import Statement, judge
from apical.papers.experiment import Experiment, Task, given
from apical.papers.outcome import Line, Outcome, Panel, Row
from apical.papers.record import Record

RULES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "bp": ("bp", {}),
    "kp": ("kp", {}),
    "kp, rank 64": ("kp", {"rank": 64}),
    "wm": ("wm", {}),
    "usf": ("usf", {}),
    "fa": ("fa", {}),
    "dfa": ("dfa", {"per_position": True}),
    "shallow": ("shallow", {}),
}
"""Condition -> rule, and its options where they are not the defaults."""
NEAR = 0.02
"""The part of BP's loss by which another may be higher and count as its equal."""
STATEMENTS = (
    Statement(
        f"KP comes to BP's loss [within {100 * NEAR:g} %]",
        ("kp", "bp"),
        lambda kp, bp: kp <= (1 + NEAR) * bp,
        lambda kp, bp: f"{kp:.3f} against {bp:.3f} nats per byte, {100 * (kp / bp - 1):+.1f} %",
        "ours",
    ),
    Statement(
        "DFA with an error for every byte learns below the output: it ends lower than shallow",
        ("dfa", "shallow"),
        lambda dfa, shallow: dfa < shallow,
        lambda dfa, shallow: f"{dfa:.3f} against {shallow:.3f} nats per byte",
        "ours",
    ),
)
TEST, VALIDATION = "test loss", "validation loss"


@dataclass(frozen=True, kw_only=True)
class Language(Experiment):
    """One network under every rule, by one recipe, from the same windows in the same order.

    Args:
        width, depth: units and blocks of the GPT. window: bytes that it sees. recipe: how it learns.
    """

    recipe: Recipe
    width: int = 256
    depth: int = 4
    window: int = 128

    @property
    @override
    def conditions(self) -> tuple[str, ...]:
        return tuple(RULES)

    @override
    def load(self, name: str | None) -> ImageData:
        name = given(self.data) if name is None else name
        if not is_text(name):
            raise DataError(
                f"data: {self.name} is about text; give 'text', or 'text:PATH' of a file or a folder, got {name!r}"
            )
        return texts.load(name, window=self.window)

    @override
    def steps(self, data: ImageData | None) -> Mapping[str, int]:
        return {"steps": self.recipe.steps}

    @override
    def run(self, task: Task) -> Record:
        name, options = RULES[task.condition]
        training = LanguageTraining(
            f"gpt-{self.width}x{self.depth}", apical.rule(name, **options), self.recipe, task, task.lengths["steps"]
        )
        curves = training.course()
        ends = {TEST: training.scores("test"), VALIDATION: training.scores("validation")}
        numbers = {name: [found["loss"]] for name, found in ends.items()}
        return Record(curves=curves, numbers=numbers | {"test error": [ends[TEST]["error"]]})

    @override
    def outcome(self, records: Mapping[str, Record]) -> Outcome:
        rows = []
        for name, record in records.items():
            nats = record.numbers[TEST]
            rows.append(Row(f"{name}: test loss, nats per byte", nats))
            rows.append(Row(f"{name}: test loss, bits per byte", [one / math.log(2) for one in nats]))
            rows.append(Row(f"{name}: validation loss, nats per byte", record.numbers[VALIDATION]))
            rows.append(Row(f"{name}: test error", record.numbers["test error"], unit="%"))
            if name != "bp" and "bp" in records:
                pairs = zip(nats, records["bp"].numbers[TEST], strict=True)
                rows.append(Row(f"{name}: test loss, part of BP's", [one / bp for one, bp in pairs]))
        losses = {name: fmean(record.numbers[TEST]) for name, record in records.items()}
        panel = Panel(
            title="A GPT on Python's sources",
            x="million bytes learned from",
            y="validation loss (nats per byte)",
            lines=[Line.of(name, record.curves[VALIDATION]) for name, record in records.items()],
        )
        return Outcome(rows=rows, claims=judge(STATEMENTS, losses), panels=[panel] if records else [])


GPT = Language(
    name="apical/gpt",
    title="A GPT of 4 blocks of 256 units on the sources of Python's standard library",
    source="ours",
    length="8.2 million bytes",
    seeds=1,
    minutes=150,
    data="text",
    readings=(
        "No paper has this experiment: every claim is counted as ours.",
        "Text is learned byte by byte in windows of 128; losses are means over 131 072 bytes of files that were held out, curves "
        "over 16 384 of those that could be chosen by. Nothing is chosen by them within a run.",
        "All rules have one recipe: AdamW at a rate of 0.001 (betas 0.9 and 0.95), raised over the first twentieth and lowered "
        "to a tenth by a cosine, decay 1 on weights and feedback that learns with them, 32 windows a step. Rate and decay were "
        "chosen by BP's validation loss on short runs: 2.83 after 60 steps at this rate, 3.09 at three times it; with 2 blocks "
        "of 64 units 2.220 after 400 steps with this decay, 2.235 with a tenth of it.",
        "AdamW's step for KP's feedback is that for its weights, whose gradient it has, and its decay is apart from both: W - B "
        "shrinks by 1 - rate x decay at every step, exactly. Adam with L2 would not keep that.",
        "The embedding learns from what reaches it; under shallow it stays as it was drawn.",
        "With --precision bf16-mixed products are made in bfloat16, weights and their steps in single precision.",
    ),
    together=False,
    precisions=("32-true", "bf16-mixed"),
    recipe=Recipe(),
)
