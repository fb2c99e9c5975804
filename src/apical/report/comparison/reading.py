"""Reading a comparison folder, with every fault that one can have.

All pages and pictures read through here, so a damaged folder is an error before anything is drawn.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apical.comparison.config import place
from apical.files import read_sealed
from apical.report.comparison.comparison import Comparison, Row, RuleEntry, Run, Samples, number
from apical.report.error import ReportError
from apical.training.metrics import MetricsLog
from apical.training.run_folder import RunFolder, RunFolderError

FORMAT = 1
SHOWN = 6
"""Runs of an unfinished comparison that are named."""


def read(folder: Path) -> Comparison:
    """The comparison in a folder that `apical compare` left.

    Raises:
        ReportError: where a file is missing or damaged; it names the file and the way out.

    >>> comparison = read(Path("runs/demo"))  # doctest: +SKIP
    >>> comparison.band("fa", "test_error").mean[-1]  # doctest: +SKIP
    """
    folder = Path(folder)
    path = folder / "comparison.json"
    if not path.exists():
        _tell_unfinished(folder)
    content = _load(
        path,
        missing="give a folder that 'apical compare' wrote",
        damaged="restore it, or run the comparison again",
    )
    faults = _faults(content)
    if faults:
        raise ReportError(f"{path}: {'; '.join(faults)}. Restore the file, or run the comparison again")
    measured = content.get("measured", {})
    runs = tuple(_run(folder, entry, measured.get(entry["folder"])) for entry in content["runs"])
    if not any(run.records for run in runs):
        raise ReportError(f"{folder}: no run has measured anything yet; {_again(folder)}")
    rules = tuple(
        RuleEntry(entry["name"], str(entry.get("title") or entry["name"]), _cites(entry.get("cites")))
        for entry in content["rules"]
    )
    rows = {row["rule"]: _row(row) for row in content["table"]}
    samples = content.get("samples")
    return Comparison(
        folder=folder,
        command=content["command"],
        versions={str(key): str(value) for key, value in content["versions"].items()},
        machine=str(content.get("machine") or ""),
        date=str(content.get("date") or ""),
        data=content["data"],
        network=str(content.get("network") or ""),
        config=content.get("config") or {},
        rules=rules,
        seeds=tuple(content["seeds"]),
        runs=runs,
        table=tuple(rows.get(entry.name, Row(entry.name)) for entry in rules),
        samples=_samples(samples) if samples and samples["images"] else None,
    )


def _tell_unfinished(folder: Path) -> None:
    """Raise a ReportError that says what the folder holds instead of a comparison that is done, if it holds a run at all."""
    try:
        config = RunFolder(folder).reopen()
    except RunFolderError as error:
        if RunFolder(folder).has_run:
            raise ReportError(str(error)) from error
        return
    first, count = config.get("first_seed"), config.get("seeds")
    if isinstance(config.get("rules"), list) and isinstance(first, int) and isinstance(count, int):
        wanted = [(rule, seed) for seed in range(first, first + count) for rule in map(str, config["rules"])]
        missing = [one for one in wanted if not (folder / place(*one) / "result.json").exists()]
        told = ", ".join(f"{rule} with seed {seed}" for rule, seed in missing[:SHOWN])
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        lacking = (
            f"of its {len(wanted)} runs {len(missing)} have no result ({told}{more})"
            if missing
            else "all runs are done"
        )
        raise ReportError(f"{folder}: the comparison was stopped before its end: {lacking}; {_again(folder)}")
    kind = "train" if "rule" in config else "reproduce" if "experiment" in config else None
    if kind is not None:
        raise ReportError(f"{folder} holds a run of `apical {kind}`; reports are made of what 'apical compare' wrote")


def _again(folder: Path) -> str:
    return f"go on with: apical compare --resume {shlex.quote(str(folder))}"


def _load(path: Path, *, missing: str, damaged: str) -> Any:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise ReportError(f"{path}: no such file; {missing}") from None
    except OSError as error:
        raise ReportError(f"{path}: cannot be read ({error.strerror}); {missing}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ReportError(f"{path}: is not JSON ({error}); {damaged}") from error
    except ValueError as error:
        raise ReportError(f"{path}: is damaged, {error}; {damaged}") from error


def _faults(content: dict[str, Any]) -> list[str]:
    """All faults of comparison.json, in words."""
    if content.get("format") != FORMAT:
        return [f"format {content.get('format')!r} is not {FORMAT}, the one that this apical reads"]
    faults = [
        f"'{key}' must be {word}"
        for key, fits, word in _SHAPE
        if not fits(content[key] if key in content else _OPTIONAL.get(key))
    ]
    if faults:
        return faults
    names = [entry["name"] for entry in content["rules"]]
    if len(set(names)) < len(names):
        faults.append("'rules' names a rule twice")
    for key in ("runs", "table"):
        strange = sorted({entry["rule"] for entry in content[key]} - set(names))
        if strange:
            faults.append(f"'{key}' has {', '.join(map(repr, strange))}, which 'rules' has not")
    return faults


def _all(kind: type, *keys: str) -> Callable[[Any], bool]:
    """A check for a list of objects, each with these keys as text."""
    return lambda value: (
        isinstance(value, list)
        and all(isinstance(entry, kind) for entry in value)
        and all(isinstance(entry.get(key), str) for entry in value for key in keys)
    )


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _fits_table(value: Any) -> bool:
    return _all(dict, "rule")(value) and all(isinstance(row.get("angles") or {}, dict) for row in value)


def _fits_samples(value: Any) -> bool:
    if value is None:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("images"), list):
        return False
    labels, predictions, names = value.get("labels"), value.get("predictions"), value.get("class_names")
    if not isinstance(predictions, dict) or not isinstance(names or [], list):
        return False
    answers = [labels, *predictions.values()]
    return all(
        isinstance(answer, list) and len(answer) == len(value["images"]) and all(map(_whole, answer))
        for answer in answers
    )


_OPTIONAL: dict[str, Any] = {"config": {}, "samples": None}
_SHAPE: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("command", lambda value: isinstance(value, str), "a text"),
    ("versions", lambda value: isinstance(value, dict), "an object: package -> version"),
    ("data", lambda value: isinstance(value, dict) and isinstance(value.get("name"), str), "an object with a name"),
    ("config", lambda value: value is None or isinstance(value, dict), "an object"),
    ("rules", lambda value: bool(value) and _all(dict, "name")(value), "a list of objects with a name"),
    ("seeds", lambda value: isinstance(value, list) and all(map(_whole, value)), "a list of whole numbers"),
    (
        "runs",
        lambda value: (
            bool(value) and _all(dict, "rule", "folder")(value) and all(_whole(run.get("seed")) for run in value)
        ),
        "a list of objects with rule, seed and folder",
    ),
    ("table", _fits_table, "a list of objects with a rule, and angles by layer"),
    ("samples", _fits_samples, "an object with images, and as many labels and predictions of each rule"),
)


def _run(folder: Path, entry: dict[str, Any], measured: str | None) -> Run:
    path = folder / entry["folder"] / "result.json"
    result, again = None, _again(folder)
    if path.exists():
        result = _load(path, missing=again, damaged=f"delete it and {again}")
    cure = f"restore it, or delete the run's folder and {again}"
    log = MetricsLog(folder / entry["folder"] / "metrics.jsonl")
    if measured not in (None, log.sha256):
        raise ReportError(f"{log.path}: is damaged, its content does not match its checksum; {cure}")
    records = _records(log.path, finished=result is not None, cure=cure)
    return Run(entry["rule"], entry["seed"], entry["folder"], records, result)


def _records(path: Path, *, finished: bool, cure: str) -> dict[int, dict[str, Any]]:
    """The lines of metrics.jsonl by step; a step measured again after a resume counts with its last line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if finished:
            raise ReportError(f"{path}: no such file, though the run is finished; {cure}") from None
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise ReportError(f"{path}: cannot be read ({error}); {cure}") from error
    records: dict[int, dict[str, Any]] = {}
    lines = text.split("\n")
    for count, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            if count == len(lines) and not finished:
                break  # killed while writing: the last line has no line end yet
            raise ReportError(f"{path}, line {count}: is not JSON ({error}); {cure}") from error
        fault = _record_fault(record)
        if fault:
            raise ReportError(f"{path}, line {count}: {fault}; {cure}")
        records[record["step"]] = record
    if finished and not records:
        raise ReportError(f"{path}: is empty, though the run is finished; {cure}")
    return dict(sorted(records.items()))


def _record_fault(record: Any) -> str | None:
    if not isinstance(record, dict) or not _whole(record.get("step")):
        return "an object with a whole 'step' is expected"
    for key in ("epoch", "train_loss", "test_loss", "test_error"):
        if not _numeric(record.get(key)):
            return f"'{key}' is no number: {record[key]!r}"
    layers = record.setdefault("alignment", {})
    if layers is None:
        layers = record["alignment"] = {}
    if not isinstance(layers, dict) or not all(isinstance(measures, dict) for measures in layers.values()):
        return "'alignment' must map layers to their measures"
    for layer, measures in layers.items():
        for key, value in measures.items():
            if not _numeric(value):
                return f"'{key}' of {layer!r} is no number: {value!r}"
    return None


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _row(row: dict[str, Any]) -> Row:
    transported = row.get("transported") or ()
    if isinstance(transported, str):
        transported = transported.split(",")
    return Row(
        rule=row["rule"],
        test_error_mean=number(row.get("test_error_mean")),
        test_error_sem=number(row.get("test_error_sem")),
        step_ratio=number(row.get("step_ratio")),
        transported=tuple(str(what).strip() for what in transported),
        broadcast=str(row.get("broadcast") or ""),
        angles={layer: number(angle) for layer, angle in (row.get("angles") or {}).items()},
    )


def _cites(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value or "")


def _samples(samples: dict[str, Any]) -> Samples:
    return Samples(
        images=samples["images"],
        labels=samples["labels"],
        predictions=samples["predictions"],
        class_names=[str(name) for name in samples.get("class_names") or []],
    )
