"""Training of one network, from its config to its result."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from apical.data import ImageData
from apical.distributed import peers_told
from apical.training.config import TrainConfig
from apical.training.networks import OneNetwork
from apical.training.run_folder import RunFolder, RunFolderError
from apical.training.session import NonFiniteLossError, Session, Watcher
from apical.training.stopping import Interrupted, stoppable

REPORTED = {"test_error", "test_loss", "steps", "seconds", "alignment", "predictions"}
"""Keys that every result has."""


@peers_told()
def train(
    config: TrainConfig,
    folder: Path | str,
    *,
    data: ImageData | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watcher: Watcher | None = None,
    captured: bool = True,
) -> dict[str, Any]:
    """Train one network by one rule, and leave a run folder.

    Args:
        config: what to run. data: loaded already, or None to load what the config names; its options apply to either.
        folder: for config.json, metrics.jsonl, checkpoint/ and result.json.
        resume: go on with the run in `folder`. It ends bit-identical to one that was never stopped.
        overwrite: delete an earlier run in `folder`, once all else is known to be right.
        watcher: called after every step.
        captured: on a GPU, take steps as CUDA graphs where that can be (see `apical.captured`): the same numbers, sooner.

    Returns:
        The result, as in result.json: test_error [%], test_loss, steps, seconds, step_ms, alignment, predictions; with
        skip_corrupt also skipped, the number of images left out, which `skipped.jsonl` names.

    Raises:
        NonFiniteLossError: the loss, an output or a weight is infinite or nan.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; the run can be resumed.
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
    data = config.applied(data or config.data)
    if config.best_by == "validation" and data.validation is None:
        raise ValueError(
            f"best_by='validation' needs a validation split, and data {data.name!r} have none; give validation=0.1 to hold one "
            "out, or best_by='test', whose error is then too good to report"
        )
    run = RunFolder(folder)
    session = Session(OneNetwork(config, data, captured=captured), data, [run.metrics])
    fabric = session.engine.fabric
    first = fabric.is_global_zero
    with ExitStack() as held:
        if resume:
            run.reopen(config.asdict(), config.later())
            if (done := run.result) is not None:
                lacking = sorted(REPORTED - done.keys())
                if lacking:
                    raise RunFolderError(
                        f"the result in {run.path} is damaged, it has no {', '.join(lacking)}; "
                        "delete its result.json, and resume the run"
                    )
                return done
            held.enter_context(run.held(first))
            _go_back(session, run)
        elif first:
            held.enter_context(run.held(overwrite and run.has_run))
            run.start(config.asdict(), overwrite=overwrite, later=config.later())
            held.enter_context(run.held())
        stopped = held.enter_context(stoppable())
        held.enter_context(placed(session))
        session.go(run, stopped, watcher or (lambda *_: None))
        (result,) = session.results().values()
        if config.skip_corrupt:
            fabric.barrier()  # Every process has left out some of its own.
            result["skipped"] = len(run.skipped.read())
        if first:
            run.finish(result)
        fabric.barrier()
    return result


def _go_back(session: Session, run: RunFolder) -> None:
    """Bring a session and its metrics to where the last checkpoint was written."""
    state, seals = run.restore_all()
    if state is not None:
        session.load(state, seals)
    if session.engine.fabric.is_global_zero:
        run.metrics.cut(None if state is None else session.step, seals[0].metrics if seals else None)


@contextmanager
def placed(session: Session) -> Iterator[None]:
    """An error amid training, of a network's own code for instance, says in a note where in the run it came."""
    try:
        yield
    except (Interrupted, NonFiniteLossError):
        raise
    except Exception as error:
        config = session.config
        error.add_note(f"after step {session.step} of {session.steps} of rule '{config.rule}' with seed {config.seed}")
        raise
