"""``python -m benchmarks.gpu_check``: see README.md beside this file."""

from __future__ import annotations

import argparse
import datetime
import shlex
import signal
import sys
import time
from pathlib import Path

from benchmarks.gpu_check.supervisor import RefusedError, Report, command, run


def main() -> int:
    """Make the checks, print and write what came out. Status: 0 if none has failed, 1 if one has, 2 if none could be made."""
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=main.__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: to try the checks themselves")
    parser.add_argument("--seconds", type=float, default=400.0, help="time for everything (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=None, help="write all records to this file, anew after each")
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="checks whose names start so")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and the worker with it
    head = {
        "date": f"{datetime.date.today()}",
        "command": shlex.join(["python", "-m", "benchmarks.gpu_check", *sys.argv[1:]]),
        "device": options.device,
        "tiny": options.tiny,
    }
    report = Report(options.json, head)
    try:
        worker = command(options.device, options.tiny)
        run(worker, options.seconds, options.only, report, lambda: time.monotonic() - start)
    except RefusedError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    if not report.records:
        print(f"gpu-check: no check's name starts with one of {', '.join(options.only)}", file=sys.stderr)
        return 2
    report.write(complete=True)
    count = {ok: sum(record["ok"] is ok for record in report.records) for ok in (True, False, None)}
    print(f"{count[True]} ok, {count[False]} failed, {count[None]} not made, {time.monotonic() - start:.0f} s")
    return 1 if count[False] else 0


if __name__ == "__main__":
    sys.exit(main())
