"""Command lines drawn at random, good and bad: they run, or say in a line what is wrong; none shows a traceback."""

import numpy as np
import pytest

from faults.campaign.children import apical_in, together

pytestmark = pytest.mark.faults

COMMANDS, AT_A_TIME = 2000, 500
SECONDS = 60
RECIPE = {
    "data": ["digits", "nowhere", "", "./", "a/b", "[x]", "~nobody/x"],
    "network": ["64-8-10", "64-8-6-10", "64-10", "63-10", "64", "", "64--10", "64-0-10", "x", "64-8-11", "no_file.py:net",
                "64-1000000000000-10", "-1-10", "apical.rules:rule", "lansdell2020-cnn"],
    "activation": ["tanh", "relu", "sigmoid", "identity", "Tanh", "softmax", "", "__class__", "dropout"],
    "loss": ["cross-entropy", "squared-error", "binary-cross-entropy", "hinge"],
    "connectivity": ["0.5", "1", "0", "-1", "1.5", "nan", "1e-9", "x"],
    "optimizer": ["SGD", "Adam", "SGD:momentum=0.5", "RMSprop", "ASGD", "Rprop", "Adagrad", "SGD:momentum=-1", "Adam:betas=1",
                  "LBFGS", "SGD:", "SGD:x=1", "", "SGD:momentum=1e40", "Muon", "Adam:eps=nan", "SGD:momentum=__import__('os')"],
    "learning-rate": ["0.01", "0.1", "0", "-1", "nan", "inf", "1e-40", "1e38", "1e39", "1e300", "x"],
    "weight-decay": ["0", "0.01", "-1", "nan", "1e10", "1e39", "inf"],
    "scheduler": ["StepLR:step_size=1", "StepLR:step_size=0", "CosineAnnealingLR:T_max=2", "StepLR", "x", "LambdaLR:lr_lambda=1",
                  "OneCycleLR:max_lr=0.1,total_steps=9", "ExponentialLR:gamma=1e300", "StepLR:step_size=1,gamma=1e300",
                  "SequentialLR", "ExponentialLR:gamma=nan", "MultiStepLR:milestones=[1]"],
    "epochs": ["1", "2", "0", "-3", "1.5", "x"],
    "batch": ["64", "100", "1442", "5000", "0", "-1", "99999999999999999999", "1441"],
    "input-noise": ["0", "0.3", "-1", "nan", "1e39", "1e30", "inf"],
    "activation-noise": ["0", "0.3", "-1", "nan", "1e39", "1e30"],
    "test-every": ["5", "0", "99999", "-1"],
    "align-every": ["0", "7", "-1", "1e3"],
    "checkpoint-every": ["5", "0", "99999"],
    "precision": ["32-true", "64-true", "bf16-mixed", "16-mixed", "8-true"],
    "memory-format": ["contiguous", "channels_last", "x"],
    "accelerator": ["cpu", "cuda", "tpu", "auto"],
}  # fmt: skip
RULES = ["fa", "bp", "kp", "dfa", "wm", "np", "sg", "reinforce", "usf", "shallow", "ifa", "kp-direct", "np:solver=ridge", "x", "",
         "fa:init=orthogonal_", "urfb:epsilon=0.5", "urfb:epsilon=nan", "fa:x=1", "kp:", "fa:init=nokland2016", "np:sigma=0",
         "wm:rate=1e300", "fa:init=3", "fa fa", "dfa:rank=3"]  # fmt: skip
SEEDS = ["0", "7", "-1", "9223372036854775807", "99999999999999999999999", "4294967296", "1.5", "x"]
FLAGS = ["--whole-output", "--no-whole-output", "--overwrite", "--unknown", "--help"]


def drawn(chance):
    """A command line. Usually all but one or two of its options are good, so that what is bad meets apical and not its parser."""

    def pick(values, bad):
        return str(chance.choice(values if bad else values[:2]))

    command = chance.choice(["train", "compare", "audit", "reproduce", "rules", "report", "benchmark", "papers"], p=[
        0.42, 0.26, 0.12, 0.06, 0.04, 0.04, 0.04, 0.02])  # fmt: skip
    words = [str(command)]
    recipe = (
        RECIPE if command in ("train", "compare") else {k: RECIPE[k] for k in ("data", "network", "activation", "loss")}
    )
    if command in ("train", "compare", "audit"):
        chosen = chance.choice(list(recipe), size=min(len(recipe), int(chance.integers(0, 6))), replace=False)
        for name in chosen:
            words += [f"--{name}", pick(recipe[name], chance.random() < 0.4)]
        for name, value in (("network", "64-8-10"), ("epochs", "1")):
            if name not in chosen and name in recipe:
                words += [f"--{name}", value]
        bad = chance.random() < 0.3
    if command == "train":
        words += ["--rule", str(chance.choice(RULES if bad else RULES[:12]))]
        words += ["--seed", pick(SEEDS, True)] if chance.random() < 0.3 else []
        words += [str(chance.choice(FLAGS))] if chance.random() < 0.1 else []
    elif command == "compare":
        words += [
            "--rules",
            *map(str, chance.choice(RULES if bad else RULES[:12], size=int(chance.integers(0, 3)), replace=bad)),
        ]
        words += ["--seeds", pick(["1", "2", "0", "-1", "x"], bad), "--no-time-steps"]
        words += ["--first-seed", pick(SEEDS, True)] if chance.random() < 0.2 else []
        words += ["--replicas", str(chance.choice(["on", "off", "auto", "x"]))] if chance.random() < 0.4 else []
    elif command == "audit":
        words += ["--rule", str(chance.choice(RULES))]
        words += ["--seed", pick(SEEDS, True)] if chance.random() < 0.3 else []
    elif command == "reproduce":
        words += [str(chance.choice(["lillicrap2016/fig2a", "x", "", "amit2019/fig12-scalar", "lillicrap2016/fig9"]))]
        words += [
            "--scale",
            str(chance.choice(["0.01", "0", "nan", "2", "1e-9", "-1"])),
            "--seeds",
            pick(["1", "2", "0", "x"], True),
        ]
        words += ["--only", str(chance.choice(["fa", "x", ""]))] if chance.random() < 0.3 else []
        words += ["--data", "digits"] if chance.random() < 0.2 else []
    elif command == "rules":
        words += [str(chance.choice([*RULES, "--x"]))]
    elif command == "report":
        words += [str(chance.choice(["nowhere", ".", "", "file", "/dev/null"]))]
        words += (
            ["--picture", str(chance.choice(["x", "x.svg", "/nowhere/x.svg", "."]))] if chance.random() < 0.5 else []
        )
    elif command == "benchmark":
        words += [
            "--networks",
            pick(["784-50-20-10", "x", "", "-1", "64-10"], True),
            "--rules",
            str(chance.choice(RULES)),
            "--seconds",
            "0.01",
        ]
        words += ["--repeats", str(chance.choice(["1", "0", "-1", "x"]))]
    return words


@pytest.mark.parametrize("part", range(COMMANDS // AT_A_TIME))
def test_no_command_line_shows_a_traceback(tmp_path, figure, part):
    chance = np.random.default_rng(part)
    lines = [drawn(chance) for _ in range(AT_A_TIME)]

    def start(number):
        home = tmp_path / str(number)
        home.mkdir()
        return apical_in(home, *lines[number], out=home / "o", file_size=200_000_000)

    ran, wrong, slow = 0, [], []
    for child in together((lambda number=number: start(number) for number in range(AT_A_TIME)), SECONDS):
        ran += child.code == 0
        if child.code == -9:
            slow.append(child.name)
        elif child.traceback or child.code not in (0, 1, 2):
            wrong.append((child.name, child.code, child.errors[-600:]))
    told = f"{AT_A_TIME}: {ran} ran, {len(wrong)} tracebacks, {len(slow)} took more than {SECONDS} s"
    figure(f"random command lines, part {part + 1}", told)
    assert not wrong
    assert not slow
