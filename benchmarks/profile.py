"""Where a step's time goes: what the device computes, kernel by kernel, beside the time that the whole step takes.

python -m benchmarks.profile resnet18 fa wm np --device cuda --precision bfloat16
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from apical.benchmark import training_step
from apical.benchmark.benchmark import BenchmarkConfig
from apical.benchmark.subjects import LARGE, SUBJECTS

STEPS = 3
KINDS = {
    "products": ("gemm", "cutlass", "nvjet", "addmm", "aten::mm", "bmm", "splitk", "splitK"),
    "convolutions": ("conv", "dgrad", "wgrad", "fprop", "implicit", "cudnn::"),
    "normalization": ("batch_norm", "batchnorm", "bn_fw", "bn_bw", "layer_norm"),
    "attention": ("attention", "flash", "fmha"),
    "noise": ("distribution", "normal_", "bernoulli", "philox"),
    "optimizer": ("multi_tensor", "fused_sgd", "FusedSgd"),
    "casts and copies": ("copy", "Memcpy", "Memset", "nchwToNhwc", "nhwcToNchw", "transpose"),
    "sums": ("reduce", "aten::sum", "aten::mean"),
    "elementwise": ("elementwise", "aten::add", "aten::mul", "aten::sub", "aten::addcmul", "aten::relu", "threshold"),
}


def kind_of(kernel: str) -> str:
    """The kind of a kernel by its name."""
    # Elementwise kernels that draw are named by what they draw.
    return next((kind for kind, words in KINDS.items() if any(word in kernel for word in words)), "other")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("network")
    parser.add_argument("rules", nargs="+", help="plain is PyTorch alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--mode", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--kernels", type=int, default=12, help="lines of the slowest kernels")
    options = parser.parse_args()
    BenchmarkConfig(networks=(options.network,), device=options.device, batch=options.batch)
    subject = {**SUBJECTS, **LARGE}[options.network]
    torch.manual_seed(0)
    model = subject.build().to(options.device)
    x, y = subject.draw(options.batch or subject.batch, options.device)
    for rule in options.rules:
        step = training_step(
            copy.deepcopy(model),
            None if rule == "plain" else rule,
            x,
            y,
            optimizer="SGD:momentum=0.9",
            criterion=subject.criterion,
            local=options.local,
            setting={"fused": True} if options.device == "cuda" else None,
            mixed=options.precision == "bfloat16",
            mode=options.mode,
        )
        print(
            f"\n{options.network}, {rule}{', LocalSGD' if options.local else ''}, {options.precision}, {options.mode}:",
            table(step, options.device == "cuda", options.kernels),
        )
        del step


def table(step: Callable[[], object], cuda: bool, kernels: int) -> str:
    """Milliseconds of the step, of the device by kind of kernel, and of the slowest kernels, line by line."""
    for _ in range(4):
        step()
    host, whole = map(statistics.median, zip(*(_timed(step, cuda) for _ in range(7)), strict=True))
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        for _ in range(STEPS):
            step()
        if cuda:
            torch.cuda.synchronize()
    found = [
        (e.key, (e.self_device_time_total if cuda else e.self_cpu_time_total) / STEPS / 1000, e.count / STEPS)
        for e in profiler.key_averages()
    ]
    found = sorted((one for one in found if one[1] > 0), key=lambda one: -one[1])
    kinds: dict[str, float] = {}
    for name, time_, _ in found:
        kinds[kind_of(name)] = kinds.get(kind_of(name), 0.0) + time_
    busy, launches = sum(kinds.values()), sum(count for *_, count in found)
    lines = [f"{whole:.3f} ms a step, {host:.3f} until all is launched, {busy:.3f} in {launches:.0f} kernels"]
    lines += [f"  {time_:9.3f} ms  {kind}" for kind, time_ in sorted(kinds.items(), key=lambda one: -one[1])]
    lines += [f"  {time_:9.3f} ms  {count:6.0f} x {name[:110]}" for name, time_, count in found[:kernels]]
    return "\n".join(lines)


def _timed(step: Callable[[], object], cuda: bool) -> tuple[float, float]:
    """Milliseconds until Python comes back, while the device may be at work, and until all is done."""
    start = time.perf_counter()
    step()
    host = time.perf_counter()
    if cuda:
        torch.cuda.synchronize()
    return 1000 * (host - start), 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
