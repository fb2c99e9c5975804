"""Queues are worked off whatever happens to them: killed, stopped, two at once, lines that fail."""

import re
import signal
import threading
import time

import numpy as np
import pytest

from apical.cli.command_line import main
from apical.cli.folders import worker
from apical.queue.lines import read
from apical.queue.packing import take
from apical.queue.queue import TAKEN, Queue
from apical.training import RunFolder, TrainConfig, train
from processes import Forked, started, wait_for
from processes import lines as measured
from training.runs import DIGITS, same, weights

RUN = "train --network 64-30-10 --epochs 6 --checkpoint-every 7 --align-every 0"
CONFIG = TrainConfig(network="64-30-10", epochs=6, checkpoint_every=7, align_every=0)


def queue(folder, *lines):
    file = folder / "list.txt"
    file.write_text("\n".join(lines))
    return Queue(folder / "queue", read(file))


@pytest.fixture
def start():
    """Lines are done in processes that are forked, so that nothing is imported anew."""
    begun = []

    def starting(made):
        def begin(line):
            begun.append(Forked(worker.work, str(made.folder), *line.words))
            return begun[-1]

        return begin

    yield starting
    for process in begun:
        process.communicate()


def test_a_queue_whose_processes_are_killed_goes_on_where_they_stopped(tmp_path, start):
    made, chance = queue(tmp_path, f"{RUN} --rule kp", f"{RUN} --rule wm"), np.random.default_rng(0)
    kills = []

    def killed(line):
        """A process that is killed at a random moment after it has measured something; the last ones are let go on."""
        process = start(made)(line)
        if len(kills) < 2:
            seen = measured(made.folder)
            wait_for(lambda: measured(made.folder) > seen, process)
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
            kills.append(line.number)
        return process

    for _ in range(4):
        made.work(killed)
    assert [made.state(line) for line in made.lines] == ["done", "done"]
    assert len(kills) == 2
    for line, rule in zip(made.lines, ("kp", "wm"), strict=True):
        train(TrainConfig(**{**CONFIG.asdict(), "rule": rule}), tmp_path / rule, data=DIGITS)
        assert same(weights(tmp_path / rule), weights(made.place(line)))
        assert made.progress(line) == f"test error {RunFolder(tmp_path / rule).result['test_error']:.2f} %"


def test_when_the_time_is_over_a_line_stops_with_a_checkpoint(tmp_path, start):
    made = queue(tmp_path, f"{RUN} --rule kp --epochs 10000", f"{RUN} --rule fa")
    processes = []

    def soon(line):
        """Started; the time counts from its first measurement."""
        processes.append(start(made)(line))
        wait_for(lambda: measured(made.folder) > 0, processes[-1])
        return processes[-1]

    told = []
    assert made.work(soon, minutes=0.01, told=lambda line, what: told.append((line.number, what)))
    assert told == [(1, "starts"), (1, "was stopped")]
    assert processes[0].returncode == 128 + signal.SIGTERM
    step = RunFolder(made.place(made.lines[0])).restore()["step"]
    assert step > 0
    assert [made.state(line) for line in made.lines] == ["started", "waiting"]
    assert "epoch" in made.progress(made.lines[0])


def test_two_queues_on_one_folder_share_its_lines(tmp_path, start):
    made, told = queue(tmp_path, *(f"{RUN} --rule fa --seed {seed}" for seed in range(4))), {0: [], 1: []}
    both = [
        threading.Thread(
            target=made.work, args=(start(made),), kwargs={"told": lambda *what, own=own: told[own].append(what)}
        )
        for own in told
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    done = [line.number for own in told.values() for line, what in own if what == "is done"]
    assert sorted(done) == [1, 2, 3, 4]
    assert all(what in ("starts", "is done") for own in told.values() for _, what in own)
    with made.held(made.lines[0]) as mine, Queue(made.folder, made.lines).held(made.lines[0]) as other:
        assert (mine, other) == (True, False)
        assert Queue(made.folder, made.lines).do(made.lines[0], lambda words: pytest.fail("it was done twice")) == TAKEN


def test_a_line_that_fails_leaves_the_others_and_is_tried_again_when_asked_to(tmp_path):
    made = queue(
        tmp_path, f"{RUN} --rule bp --learning-rate 1e30 --activation relu --optimizer SGD", f"{RUN} --rule fa"
    )
    tried = []

    def command(words):
        tried.append(words[-2])
        try:
            main(words)
        except SystemExit as error:
            return error.code
        return 0

    for line in made.lines:
        made.do(line, command)
    assert [made.state(line) for line in made.lines] == ["failed", "done"]
    assert made.do(made.lines[0], command) == 1
    assert tried == ["--folder", "--folder"]
    made.forget_failures()
    assert made.state(made.lines[0]) == "started"
    made.do(made.lines[0], command)
    assert tried == ["--folder", "--folder", "--resume"]


def test_the_command_shows_what_is_done_and_why_lines_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    made = queue(tmp_path, f"{RUN} --rule kp", f"{RUN} --rule fa", f"{RUN} --rule wm")
    made.do(made.lines[1], lambda words: 0)
    made.log(made.lines[2]).write_text("apical: error: loss became nan\n")
    made.do(made.lines[2], lambda words: 1)
    main(["queue", str(tmp_path / "list.txt"), "--folder", str(made.folder), "--show"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "train" in line]
    assert ["waiting" in rows[0], "done" in rows[1], "failed" in rows[2], "loss became nan" in rows[2]] == [True] * 4


@pytest.mark.parametrize(
    ("text", "more", "message"),
    [
        ("train --rule fa\ntrain --speed 3", (), "line 2: apical train has no such options"),
        ("train --rule fa\ntrain --epochs 0", (), "line 2: apical train .*"),
        ("train", ("--minutes", "0"), "minutes must be a positive number, got 0"),
    ],
)
def test_lists_that_cannot_be_worked_off_are_refused_before_anything_is_started(tmp_path, capsys, text, more, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(SystemExit) as error:
        main(["queue", str(tmp_path / "list.txt"), "--folder", str(tmp_path / "queue"), *more])
    assert error.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "queue").exists()


@pytest.mark.slow
def test_a_queue_that_is_killed_itself_ends_its_line_and_goes_on(tmp_path):
    made = queue(tmp_path, f"{RUN} --rule kp --epochs 60", f"{RUN} --rule fa")
    command = ("queue", str(tmp_path / "list.txt"), "--folder", str(made.folder), "--hand-back", str(tmp_path / "back"))
    for _ in range(3):
        seen = measured(made.folder)
        process = started(*command)
        wait_for(lambda s=seen: measured(made.folder) > s, process)
        process.kill()
        process.communicate()
    while not all(map(made.free, made.lines)):  # What it had started is ending by itself.
        time.sleep(0.1)
    process = started(*command)
    seen = measured(made.folder)
    wait_for(lambda: measured(made.folder) > seen, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped: the queue goes on with the same command" in errors
    process = started(*command)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, (out, errors)
    assert [made.state(line) for line in made.lines] == ["done", "done"]
    train(TrainConfig(**{**CONFIG.asdict(), "rule": "kp", "epochs": 60}), tmp_path / "kp", data=DIGITS)
    there = Queue(tmp_path / "there", made.lines)
    assert take(there, tmp_path / "back")
    assert same(weights(tmp_path / "kp"), weights(there.place(made.lines[0])))
