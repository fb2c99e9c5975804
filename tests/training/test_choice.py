"""Which rules' seeds are trained in one pass."""

import dataclasses

import pytest

from apical.comparison import compare
from apical.comparison.choice import obstacle, pays
from training.runs import DIGITS
from training.together import SHORT


@pytest.mark.parametrize(
    ("rule", "change", "message"),
    [
        ("np-direct", {}, "compares losses of whole networks"),
        ("fa", {"seeds": 1}, "one seed only"),
        ("fa", {"precision": "bf16-mixed"}, "precision bf16-mixed"),
        ("fa", {"optimizer": "Adafactor"}, "Adafactor looks at more than one weight"),
        ("fa", {"input_noise": 0.1}, "drawn for all copies alike"),
        ("fa", {"activation_noise": 0.1}, "drawn for all copies alike"),
    ],
)
def test_what_can_not_go_together_is_told_before_anything_is_written(tmp_path, rule, change, message):
    config = dataclasses.replace(SHORT, rules=("bp", rule), **change)
    with pytest.raises(
        ValueError, match=rf"(?s)one pass, and that can't be had.*- {rule}: .*{message}.*replicas='auto'"
    ):
        compare(config, tmp_path / "all", data=DIGITS)
    assert not (tmp_path / "all").exists()


def test_dropout_and_layers_that_mix_channels_go_one_by_one(tmp_path):
    net = tmp_path / "net.py"
    net.write_text(
        "from torch import nn\n"
        "def dropping():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(), nn.Linear(9, 10))\n"
        "def mixing():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.LayerNorm(9), nn.Linear(9, 10))\n"
    )
    for name, message in (("dropping", "draws random numbers"), ("mixing", "LayerNorm mixes channels")):
        config = dataclasses.replace(SHORT, network=f"{net}:{name}", rules=("fa",), epochs=1, replicas="auto", seeds=2)
        reason = obstacle(config.run("fa", 0), 2, DIGITS)
        assert reason is not None
        assert message in reason
        assert not compare(config, tmp_path / name, data=DIGITS)["rules"][0]["together"]


def test_auto_takes_together_what_it_can(tmp_path):
    config = dataclasses.replace(SHORT, rules=("np-direct", "kp"), seeds=2, epochs=1, replicas="auto")
    found = compare(config, tmp_path / "auto", data=DIGITS)
    assert [rule["together"] for rule in found["rules"]] == [False, True]
    found = compare(dataclasses.replace(config, replicas="off"), tmp_path / "off", data=DIGITS)
    assert [rule["together"] for rule in found["rules"]] == [False, False]


def test_large_networks_go_one_by_one():
    config = SHORT.run("fa", 0)
    for network, batch, expected in (
        ("64-100-50-10", 64, True),
        ("64-1000-1000-10", 64, False),
        ("64-100-50-10", 10_000, False),
    ):
        assert pays(dataclasses.replace(config, network=network, batch=batch), DIGITS) is expected


def test_replicas_is_checked():
    with pytest.raises(ValueError, match="replicas must be 'auto', 'on' or 'off', got 'yes'"):
        dataclasses.replace(SHORT, replicas="yes")
