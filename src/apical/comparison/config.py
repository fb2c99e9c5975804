"""The config of a comparison: rules x seeds on one network."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apical.checks import check_seed
from apical.training.config import Recipe, TrainConfig
from apical.training.options import rule_of


@dataclass(frozen=True, kw_only=True)
class CompareConfig(Recipe):
    """The config of a comparison: a recipe with several rules and several seeds.

    >>> config = CompareConfig(rules=("bp", "fa"), seeds=2, epochs=1)
    >>> config.run("fa", seed=1).rule
    'fa'
    """

    rules: tuple[str, ...] = ("bp", "fa", "dfa", "kp", "usf", "shallow")
    """Rules to compare, with options after a colon: bp fa urfb:epsilon=0.5."""
    seeds: int = 3
    """How many seeds; each gives every rule the same initial weights and order of samples."""
    first_seed: int = 0
    """The first seed."""
    replicas: Literal["auto", "on", "off"] = "auto"
    """Train all seeds of a rule in one pass: where results stay those of single runs and it is faster, or always, or never."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.rules:
            raise ValueError("rules is empty; name at least one rule")
        for rule in self.rules:
            rule_of(rule)
        twice = sorted({rule for rule in self.rules if self.rules.count(rule) > 1})
        if twice:
            raise ValueError(f"rules name {', '.join(twice)} more than once; name each rule once")
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {self.seeds}")
        check_seed("first_seed", self.first_seed, self.seeds)

    def run(self, rule: str, seed: int) -> TrainConfig:
        """The config of one of the runs."""
        shared = [field.name for field in dataclasses.fields(Recipe)]
        own = {key: value for key, value in self.asdict().items() if key in shared}
        return TrainConfig(**own, rule=rule, seed=seed)


def place(rule: str, seed: int | None = None) -> Path:
    """Where a run lies in the comparison's folder, or what all seeds' runs have in common.

    >>> place("urfb:epsilon=0.5", seed=1).as_posix()
    'runs/urfb_epsilon=0.5-1'
    """
    name = re.sub(r"[^\w.=-]+", "_", rule)
    return Path("together") / name if seed is None else Path("runs") / f"{name}-{seed}"
