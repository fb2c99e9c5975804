"""Check the whole zoo and write docs/zoo.md (`make zoo`).

`PYTHONPATH=src:tests python -m zoo.table words` checks networks with such words in their names, and writes nothing.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import torch

from zoo.all_of_them import NETWORKS
from zoo.rows import Row, row

ROOT = Path(__file__).parents[2]

PAGE = """# Networks that apical was tried on

{count} networks with random weights in tiny builds; {attached} of them attach by `apical.attach(model, rule, example_input=...)`.
For each of these, the gradients of `bp`, and of `fa` whose feedback is set to the weights, are those of the plain model
(relative difference at most 1e-6 in float64, unless the remark says otherwise), and after a step by `fa`, `kp` and `dfa` the
audit lists nothing but what stands here. `make zoo` writes this page.

| network | library | parameters | synapses | fa | kp | dfa | remarks; what the audits list |
|---|---|---:|---:|---|---|---|---|
"""


def line(one: Row) -> str:
    network = one.network
    cells = [network.name, network.library, f"{one.parameters:,}", str(one.synapses or "–")]
    remark = one.remark
    if network.dtype != torch.float64 or network.tolerance > 1e-6:
        remark += f"; gradients compared in {str(network.dtype).removeprefix('torch.')} at {network.tolerance:.0e}"
    if network.apart:
        remark = f"{len(network.apart)} layers by bp, because their weights are used outside of them; {remark}"
    return f"| {' | '.join([*cells, *one.answers.values(), remark.strip('; ')])} |"


def main(words: list[str]) -> int:
    """Print a line for each network; returns how many don't hold what their entries say."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows, failed = [], 0
    for network in NETWORKS:
        if words and not any(word in str(network) for word in words):
            continue
        start = time.perf_counter()
        try:
            rows.append(row(network))
            print(line(rows[-1]), f"{time.perf_counter() - start:.0f} s", flush=True)
        except Exception as error:
            failed += 1
            print(f"FAILED {network}: {type(error).__name__}: {error}", flush=True)
    if not words and not failed:
        attached = sum(one.synapses > 0 for one in rows)
        page = PAGE.format(count=len(rows), attached=attached) + "\n".join(map(line, rows)) + "\n"
        (ROOT / "docs" / "zoo.md").write_text(page)
    print(f"{len(rows)} networks as their entries say, {failed} not")
    return failed


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
