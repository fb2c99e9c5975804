"""Runs of experiments: every condition from every seed, then what it shows, in a folder that can be resumed."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apical import data as images
from apical.checks import check_seed
from apical.data.text.files import PREFIX
from apical.distributed import as_first_has, check_alone, meet, peers_told, rank, started, wait_for_all, world
from apical.files import delete, read_sealed, sealed, write_json
from apical.papers import experiments, provenance
from apical.papers.experiment import IMAGES, Experiment, Task, Watcher, given, same_data, unwatched
from apical.papers.record import Record
from apical.training.run_folder import RunFolder, RunFolderError

Announce = Callable[[str, Sequence[int]], Watcher]
"""A function announce(condition, seeds) -> the watcher of that task."""

KEYS = ("experiment", "conditions", "seeds", "scale", "data", "lengths")
"""The keys of config.json."""


def reproduce(
    experiment: Experiment,
    folder: Path | str,
    *,
    seeds: int | None = None,
    first_seed: int = 0,
    scale: float = 1.0,
    data: str | None = None,
    only: Sequence[str] = (),
    resume: bool = False,
    overwrite: bool = False,
    using: Path | str | None = None,
    precision: str = "32-true",
    announce: Announce | None = None,
) -> dict[str, Any]:
    """The outcome of an experiment that is run, also left as `outcome.json` in `folder`.

    Args:
        experiment: what to run. folder: for everything; every finished condition is kept in it at once.
        seeds: how many, counted from first_seed; None: as many as the experiment has at full length.
        scale: fraction of the paper's length, above 0 and at most 1.
        data: hub name or folder of the images; None: what the experiment names.
        only: some of the conditions; none given: all.
        resume: go on with what was stopped in `folder`. overwrite: delete an earlier experiment there, once all else is right.
        using: folder of an experiment of the same runs, whose finished conditions are taken over.
        precision: of the passes through the network, one of the experiment's.
        announce: gives each task's watcher.

    Returns:
        The content of outcome.json.

    Raises:
        ValueError: a bad scale, seed, condition, folder, missing data, or processes that can't share the experiment's
            minibatches, before anything is written.
        PeerLostError: another process has ended; the experiment can be resumed.
    """
    _check_processes(experiment)
    chosen, own_seeds = _chosen(experiment, only), _seeds(experiment, seeds, first_seed)
    if not (math.isfinite(scale) and 0 < scale <= 1):
        raise ValueError(f"scale must be above 0 and at most 1 (the paper's length), got {scale}")
    if precision not in experiment.precisions:
        known = " or ".join(experiment.precisions)
        raise ValueError(f"precision of {experiment.name} is {known}, got {precision!r}")
    loaded = experiment.load(data)
    config: dict[str, Any] = {
        "experiment": experiment.name,
        "conditions": chosen,
        "seeds": own_seeds,
        "scale": scale,
        "data": experiment.data if data is None else data,
        "lengths": scaled(experiment, experiment.steps(loaded), scale),
    }
    if precision != "32-true":  # Folders from before there was a choice have no such key.
        config["precision"] = precision
    found = {} if using is None else _finished(experiment, Path(using), config)
    with peers_told():
        meet()
        home, first = RunFolder(as_first_has(str(folder))), rank() == 0
        if resume:
            home.reopen(config)
        elif first:
            with home.held(overwrite and home.has_run):
                home.start(config, overwrite=overwrite, more=lambda kept: _left(home.path, kept), seal=True)
        with home.held(first):
            return _outcome(experiment, home, config, loaded, found, announce)


def _check_processes(experiment: Experiment) -> None:
    if experiment.workers == 1:
        check_alone(f"experiment {experiment.name}", "start it without torchrun")
    elif experiment.workers % (count := max(world(), started())):
        fit = [str(one) for one in range(1, experiment.workers + 1) if experiment.workers % one == 0]
        raise ValueError(
            f"experiment {experiment.name} shares each minibatch among {experiment.workers} workers, which {count} processes "
            f"can't take evenly; start {', '.join(fit[:-1])} or {fit[-1]} of them"
        )


def _outcome(
    experiment: Experiment,
    home: RunFolder,
    config: dict[str, Any],
    loaded: images.ImageData | None,
    found: dict[str, Record],
    announce: Announce | None,
) -> dict[str, Any]:
    """The outcome of all conditions from all seeds, written by the first of all processes."""
    if rank() == 0:
        for path, record in found.items():
            write_json(home.path / "records" / path, sealed(record.asdict()))
    wait_for_all()
    records = {}
    for condition in config["conditions"]:
        parts = []
        for share in _shares(experiment, config["seeds"]):
            slug = _slug(condition, share)
            watcher = announce(condition, share) if announce else unwatched
            place, precision = home.path / "tasks" / slug, config.get("precision", "32-true")
            task = Task(condition, share, config["scale"], config["lengths"], place, loaded, watcher, precision)
            parts.append(_record(experiment, task, home.path / "records" / f"{slug}.json"))
        records[condition] = Record.joined(parts)
    judged = provenance.made()
    outcome = {
        "format": 1,
        **config,
        "data": None if loaded is None else described(experiment, config, loaded),
        "title": experiment.title,
        "source": experiment.source,
        "length": experiment.length,
        "readings": list(experiment.readings),
        "command": _command(experiment, config),
        # How the runs came to be; below, by what they were judged.
        "made": provenance.told(one for record in records.values() for one in record.made),
        "versions": {key: judged[key] for key in ("apical", "torch", "python")},
        "machine": judged["machine"],
        "date": judged["date"],
        "seconds": round(sum(record.seconds for record in records.values()), 1),
        "shows": Record(arrays=shown(experiment, records)).asdict()["arrays"],
    }
    outcome = sealed(outcome)
    if rank() == 0:
        write_json(home.path / "outcome.json", outcome)
    return outcome


def _seeds(experiment: Experiment, seeds: int | None, first: int) -> list[int]:
    count = experiment.seeds if seeds is None else seeds
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    check_seed("first_seed", first, count)
    return list(range(first, first + count))


def _name(data: str) -> str:
    """The data's name, without the path that a folder has on this machine."""
    kind, path = (PREFIX if data.startswith(PREFIX) else ""), Path(data.removeprefix(PREFIX))
    return kind + path.resolve().name if kind or path.is_dir() else data


def described(experiment: Experiment, config: dict[str, Any], loaded: images.ImageData) -> str:
    """The name of the data; with the numbers of images where these are not those of the data set that the experiment names."""
    name = _name(config["data"])
    if len(loaded.shape) == 1:
        return f"{name} ({len(loaded.train)} + {len(loaded.test)} windows of {loaded.shape[0]} bytes)"
    own = IMAGES[given(experiment.data)]
    counts = len(loaded.train), len(loaded.test)
    return name if counts == (own.train, own.test) else f"{name} ({counts[0]} + {counts[1]} images)"


def shown(experiment: Experiment, records: dict[str, Record]) -> dict[str, Any]:
    """The experiment's outcome as plain dicts and lists, with what is computed from rows."""
    outcome = experiment.outcome(records)
    plain = dataclasses.asdict(outcome)
    for row, told in zip(outcome.rows, plain["rows"], strict=True):
        told |= {"mean": row.mean, "sem": row.sem, "agrees": row.agrees}
    return plain


def _command(experiment: Experiment, config: dict[str, Any]) -> str:
    """The command that does the same; of a data folder only the name, and none where it is that of the experiment's."""
    words = ["apical", "reproduce", experiment.name]
    if len(config["seeds"]) != experiment.seeds:
        words += ["--seeds", str(len(config["seeds"]))]
    if config["seeds"][0]:
        words += ["--first-seed", str(config["seeds"][0])]
    if config["scale"] != 1:
        words += ["--scale", repr(config["scale"])]
    if len(config["conditions"]) < len(experiment.conditions):
        words += ["--only", *config["conditions"]]
    if "precision" in config:
        words += ["--precision", config["precision"]]
    own = None if config["data"] is None else _name(config["data"])
    if own is not None and not same_data(own, experiment.data):
        words += ["--data", own]
    return shlex.join(words)


def _chosen(experiment: Experiment, only: Sequence[str]) -> list[str]:
    unknown = [one for one in only if one not in experiment.conditions]
    if unknown:
        raise ValueError(
            f"{experiment.name} has no condition {', '.join(map(repr, unknown))}; "
            f"its conditions are {', '.join(experiment.conditions)}"
        )
    return [one for one in experiment.conditions if not only or one in only]


def scaled(experiment: Experiment, full: Mapping[str, int], scale: float) -> dict[str, int]:
    """The lengths of a shortened experiment.

    Raises:
        ValueError: if one would be nothing.
    """
    lengths = {name: int(steps * scale + 1e-9) for name, steps in full.items()}
    empty = [name for name, steps in lengths.items() if steps < 1]
    if empty:
        least = _rounded_up(max(1 / full[name] for name in empty))
        raise ValueError(
            f"scale {scale:g} would leave {experiment.name} no {', '.join(empty)} to make; give at least {least}"
        )
    return lengths


def _rounded_up(value: float) -> str:
    """Three digits, never less than the value itself."""
    place = 10.0 ** (2 - math.floor(math.log10(value)))
    return f"{math.ceil(value * place) / place:.3g}"


def _finished(experiment: Experiment, folder: Path, config: dict[str, Any]) -> dict[str, Record]:
    """File name -> record, of the conditions in another run's folder that are wanted and done."""
    try:
        there = RunFolder(folder).reopen()
    except RunFolderError as error:
        raise ValueError(f"using: {folder} can't be read as the folder of an experiment: {error}") from error
    other = there.get("experiment")
    if other not in experiments() or experiments()[other].runs != experiment.runs:
        raise ValueError(
            f"using: {folder} holds {other}, whose runs are not those of {experiment.name}; leave it out, or name a folder of "
            + " or ".join(name for name, one in experiments().items() if one.runs == experiment.runs)
        )
    changed = [
        f"{key}: {there.get(key)!r} there, {config.get(key)!r} asked"
        for key in ("seeds", "scale", "data", "lengths", "precision")
        if there.get(key) != config.get(key)
    ]
    if changed:
        raise ValueError(
            f"using: the runs in {folder} were made with other settings ({'; '.join(changed)}); ask for the same, or leave it out"
        )
    names = [_slug(one, share) for one in config["conditions"] for share in _shares(experiment, config["seeds"])]
    paths = [folder / "records" / f"{name}.json" for name in names]
    return {path.name: _kept(path) for path in paths if path.exists()}


def _left(home: Path, kept: Mapping[str, Any]) -> list[str | Path]:
    """All files, beyond those of any run, that an experiment with this config has left in its folder."""
    slugs = {_slug(one, share) for one in kept["conditions"] for share in ([*kept["seeds"]], *zip(kept["seeds"]))}
    tasks = [one.relative_to(home) for slug in slugs for one in (home / "tasks" / slug).glob("*.ckpt")]
    return [*tasks, *(f"records/{slug}.json" for slug in slugs), "outcome.json", "report.html", "figure.svg"]


def _kept(path: Path) -> Record:
    try:
        return Record.of(read_sealed(path))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete it, and resume the experiment") from error


def _shares(experiment: Experiment, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """Seeds that are run together."""
    return [tuple(seeds)] if experiment.together else [(seed,) for seed in seeds]


def _slug(condition: str, seeds: Sequence[int]) -> str:
    return re.sub(r"[^\w.=-]+", "_", condition) + "-" + "-".join(map(str, sorted({seeds[0], seeds[-1]})))


def _record(experiment: Experiment, task: Task, path: Path) -> Record:
    """The record that a file keeps, or of a task that is run now and then kept there."""
    there = path.exists()
    wait_for_all()  # None runs it, and writes the record, before all have looked.
    if there:
        return _kept(path)
    record = experiment.run(task)
    record = dataclasses.replace(record, seeds=task.seeds, seconds=round(task.seconds, 2), made=[provenance.made()])
    if rank() == 0:
        write_json(path, sealed(record.asdict()))
        home = task.folder.parent
        delete(home, [one.relative_to(home) for one in task.folder.glob("*.ckpt")])
    return record
