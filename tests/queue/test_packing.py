"""What is handed back in small files comes back whole, once, and in the place of what is older."""

import dataclasses

import pytest

from apical.queue.lines import Line
from apical.queue.packing import hand_back, take
from apical.queue.queue import Queue
from apical.training import RunFolder, train
from processes import BoomError, boom_at
from training.runs import DIGITS, SHORT, same, weights

ONE, TWO = Line(1, ("train", "--seed", "1")), Line(2, ("train", "--seed", "2"))


def content(queue):
    return {
        str(path.relative_to(queue.folder)): path.read_bytes()
        for path in queue.folder.rglob("*")
        if path.is_file() and ".lock" not in str(path) and path.name != ".taken.json"
    }


@pytest.fixture
def here(tmp_path):
    queue = Queue(tmp_path / "here", [ONE, TWO])
    for line in queue.lines:
        (queue.place(line) / "runs" / "kp-0" / "checkpoint").mkdir(parents=True)
        (queue.place(line) / ".lock").write_text("")
        (queue.place(line) / "config.json").write_text('{"rule": "fa"}')
        (queue.place(line) / "runs" / "kp-0" / "checkpoint" / "last.ckpt").write_bytes(bytes(range(250)) * 100)
        queue.log(line).write_text("what it said")
    queue.do(ONE, lambda words: 0)
    return queue


@pytest.fixture
def there(tmp_path):
    return Queue(tmp_path / "there", [ONE, TWO])


def test_small_files_come_together_again(here, there, tmp_path):
    back = tmp_path / "back"
    for most in (1000, 20_000):
        count = hand_back(here, here.lines, back, most=most)
        files = list(back.iterdir())
        assert len(files) == count
        assert max(path.stat().st_size for path in files) <= most
    assert take(there, back) == [ONE, TWO]
    assert content(there) == content(here)
    assert [there.state(line) for line in there.lines] == ["done", "started"]


def test_what_is_taken_is_taken_once_and_leaves_what_is_done(here, there, tmp_path):
    back, last = tmp_path / "back", "runs/kp-0/checkpoint/last.ckpt"
    hand_back(here, [TWO], back, most=1000)
    assert take(there, back) == [TWO]
    (there.place(TWO) / last).write_text("further on")
    (there.place(TWO) / "newer").write_text("")
    assert take(there, back) == []
    assert (there.place(TWO) / last).read_text() == "further on"
    (here.place(TWO) / last).write_text("further still")
    hand_back(here, here.lines, back)
    with there.held(TWO):
        pass
    assert take(there, back) == [ONE, TWO]
    assert content(there) == content(here)
    there.do(TWO, lambda words: 0)
    (here.place(TWO) / last).write_text("late")
    hand_back(here, here.lines, back)
    assert take(there, back) == []
    assert (there.place(TWO) / last).read_text() == "further still"


def test_lines_that_somebody_has_are_left_to_him(here, there, tmp_path):
    with Queue(here.folder, here.lines).held(TWO):
        hand_back(here, here.lines, tmp_path / "back")
    assert take(there, tmp_path / "back") == [ONE]
    hand_back(here, here.lines, tmp_path / "back")
    with Queue(there.folder, there.lines).held(TWO):
        assert take(there, tmp_path / "back") == []
    assert Queue(tmp_path / "other", [ONE]).lines == take(Queue(tmp_path / "other", [ONE]), tmp_path / "back")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda back: (back / "queue.1").write_bytes(b"x" * 1000), "they do not belong together"),
        (lambda back: (back / "queue.1").unlink(), "queue.1"),
        (lambda back: (back / "queue.json").unlink(), "queue.json"),
        (lambda back: (back / "queue.json").write_text("[]"), "list indices"),
    ],
)
def test_what_is_damaged_is_refused_and_nothing_is_changed(here, there, tmp_path, damage, message):
    hand_back(here, here.lines, tmp_path / "back", most=1000)
    damage(tmp_path / "back")
    with pytest.raises(
        ValueError, match=f"what was handed back in .* can't be taken: .*{message}.*copy all its files again"
    ):
        take(there, tmp_path / "back")
    assert not there.folder.exists()


def test_a_run_goes_on_from_small_files_and_ends_bit_identical(there, tmp_path):
    config, here = dataclasses.replace(SHORT, rule="wm"), Queue(tmp_path / "here", [ONE])
    train(config, tmp_path / "whole", data=DIGITS)
    with pytest.raises(BoomError):
        train(config, here.place(ONE), data=DIGITS, watcher=boom_at(33))
    hand_back(here, [ONE], tmp_path / "back", most=3000)
    take(there, tmp_path / "back")
    assert RunFolder(there.place(ONE)).restore()["step"] == 30
    train(config, there.place(ONE), data=DIGITS, resume=True)
    assert same(weights(tmp_path / "whole"), weights(there.place(ONE)))
