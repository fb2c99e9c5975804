"""Runs and comparisons with one bit changed: what goes on, or is reported, is right, or it is refused with the file's name."""

import random
import shutil

from apical.cli.command_line import main
from apical.files import read_sealed
from apical.training import RunFolder
from training.runs import TIMELESS, weights

TIMES = {*TIMELESS, "step_ms", "measured", "date", "command"}


def flipped(path, chance):
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


def ended(capsys, *words):
    """The status with which a command ends, and what it says."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as error:
        code = error.code
    said = capsys.readouterr()
    return code, said.out + said.err


def told(path):
    """What a file of a run, a comparison or a report says, without times."""
    if path.suffix == ".ckpt":
        return {name: tensor.tolist() for name, tensor in weights(path.parents[1]).items()}
    if path.suffix == ".jsonl":
        return [{**line, **TIMELESS} for line in RunFolder(path.parent).metrics.read()]
    return _timeless(read_sealed(path)) if path.suffix == ".json" else path.read_text()


def _timeless(value):
    if isinstance(value, dict):
        return {key: _timeless(one) for key, one in value.items() if key not in TIMES}
    return [_timeless(one) for one in value] if isinstance(value, list) else value


def wrong(capsys, whole, damaged, name, commands, right, *, flips):
    """Ends that are neither right nor refused by name, after one bit of `damaged / name` was changed, `flips` times each.

    commands: of apical, before the folder's name. right: files of the folder that are to say what they say in `whole`.
    """
    found = []
    for number in range(flips):
        for command in commands:
            folder = whole.parent / "flipped"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(damaged, folder)
            flipped(folder / name, random.Random(f"{name} {number}"))
            code, said = ended(capsys, *command, folder)
            if code:
                other = f"the run in {(folder / name).parent} was made with other settings" in said
                fine = code == 2 and (str(folder / name) in said or other) and "Traceback" not in said
            else:
                fine = all(told(folder / one) == told(whole / one) for one in right)
            found += [] if fine else [(number, command, code, said)]
    return found
