"""The benchmark, in cells of which each fits into a part of the time: what matters most first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from benchmarks.gpu_check.common import Check, Convolutions, SkipError, Where

from apical.benchmark import BenchmarkConfig, Missing, run
from apical.benchmark.subjects import LARGE, Subject
from apical.networks import mlp
from apical.networks.transformer import GPT, VisionTransformer

SMALL = ("784-50-20-10", "784-800-800-10", "lansdell2020-cnn", "resnet20")
LAYER_WISE = ("fa", "kp", "usf")
ALL = (*LAYER_WISE, "dfa", "wm", "np")
# At its own rate np diverges in two steps on deep networks, and what is not finite teaches nothing, in no time.
NP = "np:rate=1e-9"
LARGE_TOO = (*LAYER_WISE, "dfa", "wm", NP)
HALF = {"precision": "bfloat16"}
GRAPH = {"modes": ("captured",), **HALF}
WIDE = "3072-8192x3-10"

# dfa is not for ResNet-50 and GPT: feedback from every output to every activity would not fit.
CELLS: dict[str, tuple[float, dict[str, Any]]] = {
    "resnet50, eager": (35, {"networks": ("resnet50",), "rules": (*LAYER_WISE, "wm", NP), "seconds": 16, **HALF}),
    "resnet18, eager": (25, {"networks": ("resnet18",), "rules": LARGE_TOO, "seconds": 10, **HALF}),
    "3072-8192x3-10, eager": (25, {"networks": (WIDE,), "rules": LARGE_TOO, "seconds": 6, **HALF}),
    "small, captured": (45, {"networks": SMALL, "rules": ALL, "seconds": 4, "modes": ("captured",)}),
    "resnet18, compiled": (60, {"networks": ("resnet18",), "rules": LAYER_WISE, "seconds": 5, "modes": ("compiled",), **HALF}),
    "resnet18, LocalSGD": (12, {"networks": ("resnet18",), "rules": ("fa", "kp"), "seconds": 4, "local": True, **HALF}),
    "resnet50, captured": (25, {"networks": ("resnet50",), "rules": ("fa", "kp"), "seconds": 5, **GRAPH}),
    "resnet18, captured": (20, {"networks": ("resnet18",), "rules": ("wm", NP), "seconds": 4, **GRAPH}),
    "3072-8192x3-10, captured": (15, {"networks": (WIDE,), "rules": ("fa", "dfa", NP), "seconds": 3, **GRAPH}),
    "3072-8192x3-10, LocalSGD": (8, {"networks": (WIDE,), "rules": ("fa", "kp"), "seconds": 2, "local": True, **HALF}),
    "vit-s16, eager": (15, {"networks": ("vit-s16",), "rules": LAYER_WISE, "seconds": 6, **HALF}),
    "gpt-124m, eager": (20, {"networks": ("gpt-124m",), "rules": LAYER_WISE, "seconds": 6, **HALF}),
    "small, eager": (20, {"networks": SMALL, "rules": ALL, "seconds": 3}),
}  # fmt: skip
"""Name -> the seconds that a cell needs at least, and its configuration."""

TINY: dict[str, Subject] = {
    "tiny-mlp": Subject(lambda: mlp([20, 16, 16, 10]), (20,), 8),
    "tiny-cnn": Subject(lambda: Convolutions(4), (3, 8, 8), 4, 5),
    "tiny-vit": Subject(
        lambda: VisionTransformer(size=16, patch=8, width=8, depth=2, heads=2, classes=5), (3, 16, 16), 4, 5
    ),
    "tiny-gpt": Subject(lambda: GPT(vocabulary=11, context=6, width=8, depth=2, heads=2), (6,), 4, 11, 11),
}
TINY_CELLS: dict[str, tuple[float, dict[str, Any]]] = {
    "tiny, eager": (2, {"networks": tuple(TINY), "rules": ("fa", "kp", "np"), "seconds": 0.1, **HALF}),
    "tiny, captured": (2, {"networks": ("tiny-mlp",), "rules": ("fa", "wm"), "seconds": 0.1, "modes": ("captured",)}),
    "tiny, compiled": (2, {"networks": ("tiny-mlp",), "rules": ("fa",), "seconds": 0.1, "modes": ("compiled",)}),
}


def checks(where: Where) -> Iterator[Check]:
    if where.tiny:
        LARGE.update(TINY)
    for name, (least, options) in (TINY_CELLS if where.tiny else CELLS).items():
        yield Check(f"benchmark/{name}", lambda options=options: timed(where, options), 4 * least + 60, least)


def timed(where: Where, options: dict[str, Any]) -> dict[str, Any]:
    """Measurements as `apical benchmark --json` has them, and what could not be timed."""
    try:
        config = BenchmarkConfig(device=where.device, repeats=1, **options)
    except ValueError as error:
        if "captured" in str(error):
            raise SkipError(str(error)) from error
        raise
    missing: list[Missing] = []
    found = run(config, missing=missing)
    assert found, f"nothing could be timed: {missing}"
    return {"measurements": [m.asdict() for m in found], "missing": [asdict(one) for one in missing]}
