"""Windows of a text against slices by NumPy, and what networks learn of them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import apical
from apical import report
from apical.cli.compare import table
from apical.data import DataError, load
from apical.data.text.windows import Windows
from apical.networks import build
from apical.training import CompareConfig, RunFolder, TrainConfig, compare, train
from data.text.books import written
from processes import BoomError, boom_at
from training.runs import same, weights


def bytes_of(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    window=st.integers(1, 20),
    more=st.integers(0, 300),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**20),
    epoch=st.integers(0, 3),
    ranks=st.integers(1, 3),
)
def test_batches_are_all_whole_windows_once_and_their_next_bytes(window, more, size, seed, epoch, ranks):
    text = bytes_of(window + 1 + more, seed)
    split = Windows(torch.from_numpy(text), window)
    count = (len(text) - 1) // window
    expected = sorted(
        (text[i * window :][:window].tolist(), text[i * window + 1 :][:window].tolist()) for i in range(count)
    )
    whole = list(split.batches(size, seed, epoch))
    assert sorted((a, b) for x, y in whole for a, b in zip(x.tolist(), y.tolist(), strict=True)) == expected
    assert all(x.dtype == y.dtype == torch.int64 and x.shape == y.shape == (len(x), window) for x, y in whole)
    assert [len(x) for x, _ in whole] == [min(size, count - i) for i in range(0, count, size)]
    # What is left of an epoch, and the shares of several processes, are the same windows, each in one place.
    later = list(split.batches(size, seed, epoch, start=len(whole) // 2))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(whole[len(whole) // 2 :], later, strict=True))
    parts = [list(split.batches(size, seed, epoch, part=(rank, ranks))) for rank in range(ranks)]
    for (x, y), *shares in zip(whole, *parts, strict=True):
        assert torch.equal(torch.cat([one for one, _ in shares]), x)
        assert torch.equal(torch.cat([one for _, one in shares]), y)
    if count > 8:
        assert [x.tolist() for x, _ in whole] != [x.tolist() for x, _ in split.batches(size, seed + 1, epoch)]


def test_of_a_long_part_windows_spread_evenly_are_tested():
    text = torch.from_numpy(bytes_of(10_001))
    found = Windows(text, 10, most=100)
    assert found.starts.tolist() == list(range(0, 10_000, 100))
    assert Windows(text, 10, most=5000).starts.tolist() == list(range(0, 10_000, 10))
    data = load("text", window=64)
    assert len(data.test) == 2**17 // 64
    assert isinstance(data.train, Windows)
    assert len(data.train) == (len(data.train.text) - 1) // 64
    assert (data.shape, data.classes, data.class_names[10], data.class_names[65]) == ((64,), 256, "\\n", "A")


def test_a_text_is_no_images():
    split = Windows(torch.zeros(9, dtype=torch.uint8), 4)
    with pytest.raises(DataError, match="a text has no images"):
        split.pictures(1)
    with pytest.raises(DataError, match="4 bytes are too few for a window of 4"):
        Windows(torch.zeros(4, dtype=torch.uint8), 4)
    with pytest.raises(
        ValueError, match=r"network '8-4-256' is for images, and the data are a text in windows of 8 bytes; name"
    ):
        build("8-4-256", shape=(8,), classes=256)
    with pytest.raises(ValueError, match=r"network 'gpt-16x1' is for text, and the data are images; give data='text'"):
        build("gpt-16x1", shape=(1, 8, 8), classes=10)


SETTING = TrainConfig(
    network="gpt-16x1",
    window=16,
    batch=8,
    epochs=2,
    rule="kp",
    optimizer="AdamW",
    learning_rate=0.01,
    checkpoint_every=5,
    precision="bf16-mixed",
)


@pytest.fixture
def setting(tmp_path):
    """A function: other options -> a config on a small text."""
    name = f"text:{written(tmp_path / 'books', 6, 300)}"
    return lambda **options: dataclasses.replace(SETTING, data=name, **options)


def test_losses_are_means_over_bytes_in_nats_and_in_bits(setting, tmp_path):
    config = setting(rule="bp", precision="64-true", checkpoint_every=None)
    data = config.applied(config.data)
    result = train(config, tmp_path / "run")
    _, model = apical.load(tmp_path / "run")
    found = np.zeros(2)
    for x, y in data.test.in_order(5):
        z = model(x).detach().numpy()
        log = z - z.max(-1, keepdims=True)
        log -= np.log(np.exp(log).sum(-1, keepdims=True))
        found += (-np.take_along_axis(log, y.numpy()[..., None], -1).sum(), (z.argmax(-1) != y.numpy()).sum())
    bytes_tested = len(data.test) * 16
    assert result["test_loss"] == pytest.approx(found[0] / bytes_tested)
    assert result["test_error"] == pytest.approx(100 * found[1] / bytes_tested)
    assert result["test_bits_per_byte"] == pytest.approx(result["test_loss"] / math.log(2))
    lines = RunFolder(tmp_path / "run").metrics.read()
    # Before anything is learned all bytes are about as likely; and text of random bytes can be learned by heart alone.
    assert lines[0]["test_loss"] == pytest.approx(math.log(256), rel=0.02)
    assert lines[1]["train_loss"] == pytest.approx(math.log(256), rel=0.05)
    assert lines[-1]["windows_per_second"] > 0
    assert "validation_bits_per_byte" in lines[-1]


def test_a_run_on_text_that_stops_and_resumes_ends_bit_identical(setting, tmp_path):
    config = setting()
    train(config, tmp_path / "whole")
    for attempt, limit in enumerate((3, 11, 17)):
        with pytest.raises(BoomError):
            train(config, tmp_path / "cut", resume=attempt > 0, watcher=boom_at(limit))
    train(config, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_rules_are_compared_on_text(setting, tmp_path):
    names = {field.name for field in dataclasses.fields(CompareConfig)}
    options = {key: value for key, value in dataclasses.asdict(setting(epochs=1)).items() if key in names}
    found = compare(CompareConfig(**options, rules=("bp", "fa", "shallow"), seeds=2), tmp_path / "all")
    assert [row["transported"].split(",")[0] for row in found["table"]] == ["weights", "normalization scale", "nothing"]
    assert not any(rule["together"] for rule in found["rules"])
    shown = [column.header for column in table(found).columns]
    assert "bits per byte" in shown
    assert all(7.5 < row["test_bits_per_byte_mean"] < 9 for row in found["table"])
    page = report.write(tmp_path / "all").read_text()
    assert "training windows of 16 bytes" in page


def test_noise_is_for_images(setting, tmp_path):
    with pytest.raises(ValueError, match=r"input_noise=0\.1 is for images, and a text has bytes; leave it out"):
        train(setting(input_noise=0.1), tmp_path / "run")
