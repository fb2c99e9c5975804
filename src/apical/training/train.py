"""Training of one network, from its config to its result."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apical import data as images
from apical.data import ImageData
from apical.distributed import peers_told
from apical.training.config import TrainConfig
from apical.training.networks import OneNetwork
from apical.training.run_folder import RunFolder
from apical.training.session import Session, Watcher


@peers_told()
def train(
    config: TrainConfig,
    folder: Path | str,
    *,
    data: ImageData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Train one network by one rule, and leave a run folder.

    Args:
        config: what to run. data: loaded already, or None to load what the config names.
        folder: for config.json, metrics.jsonl, checkpoint/ and result.json.
        resume: go on with the run in `folder`. It ends bit-identical to one that was never stopped.
        overwrite: delete an earlier run in `folder`, once all else is known to be right.
        watcher: called after every step.

    Returns:
        The result, as in result.json: test_error [%], test_loss, steps, seconds, step_ms, alignment, predictions.

    Raises:
        NonFiniteLossError: the loss is infinite or nan. Interrupted: Ctrl-C; the run can be resumed.
        PeerLostError: another process of the run has ended; the run can be resumed.
        ValueError: bad config, data, folder or checkpoint, before anything is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as home:
    ...     result = train(TrainConfig(rule="fa", network="64-20-10", epochs=1), f"{home}/run")
    ...     sorted(path.name for path in Path(home, "run").iterdir())
    ['checkpoint', 'config.json', 'metrics.jsonl', 'result.json']
    >>> result["steps"], result["test_error"] < 60
    (23, True)
    """
    data = images.load(config.data) if data is None else data
    run = RunFolder(folder)
    session = Session(OneNetwork(config, data), data, [run.metrics])
    fabric = session.engine.fabric
    if resume:
        run.reopen(config.asdict())
        if run.result is not None:
            return run.result
        state = run.restore()
        if state is not None:
            session.load(state)
        if fabric.is_global_zero:
            run.metrics.cut(None if state is None else session.step)
    elif fabric.is_global_zero:
        run.start(config.asdict(), overwrite=overwrite)
    with stoppable() as stopped:
        session.go(run, stopped, watcher or (lambda *_: None))
        (result,) = session.results().values()
        if fabric.is_global_zero:
            run.finish(result)
        fabric.barrier()
    return result


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """A function that says whether Ctrl-C was pressed, for a stop at the next step's end; a second Ctrl-C stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()

    def handler(number: int, frame: Any) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
