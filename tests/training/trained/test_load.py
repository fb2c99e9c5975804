"""Trained networks come out of their run folders, with a learner and without one; what is damaged is refused."""

import dataclasses
import hashlib
import io
import json
import shutil

import pytest
import torch

import apical
from apical.cli.command_line import main
from apical.networks import build
from apical.training import (
    CheckpointError,
    CompareConfig,
    RunFolder,
    RunFolderError,
    TrainConfig,
    compare,
    export,
    train,
)
from apical.training import checkpoint as checkpoints
from processes import BoomError, boom_at
from training.runs import DIGITS, SHORT, small, weights

RULES = ("kp", "wm", "np:solver=ridge", "dfa", "brsf", "reinforce", "shallow")


def predicted(model, data):
    x, _ = data.test.first(1000)
    with torch.no_grad():
        return model(x.to(next(model.parameters()).dtype)).argmax(1).tolist()


@pytest.mark.parametrize("rule", RULES)
def test_a_run_gives_its_network_and_its_learner(tmp_path, rule):
    config = dataclasses.replace(SHORT, rule=rule)
    result = train(config, tmp_path / "run", data=DIGITS)
    before = torch.get_rng_state()
    learner, model = apical.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    assert learner.model is model
    assert not model.training
    assert predicted(model, DIGITS) == result["predictions"]
    state, kept = checkpoints.load(tmp_path / "run" / "checkpoint" / "last.ckpt"), model.state_dict()
    assert all(torch.equal(kept[name], one) for name, one in state["model"].items())
    assert torch.equal(learner.generator.get_state(), state["learner"]["generator"])
    x, y = DIGITS.test.first(256)
    found = apical.alignment(learner, x, y, torch.nn.CrossEntropyLoss(reduction="none"))
    for name, measures in result["alignment"].items():
        angle = found[name].asdict()["matrix_angle"]
        assert (angle is None) == (measures["matrix_angle"] is None)
        assert angle is None or float(angle) == pytest.approx(measures["matrix_angle"], abs=1e-3)
    # It learns on.
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(model(x), y).backward()
    learner.adapt(x, y, torch.nn.CrossEntropyLoss(reduction="none"))
    optimizer.step()
    assert any(not torch.equal(kept[name], one) for name, one in state["model"].items())


def test_the_data_are_not_needed_but_by_checkpoints_of_earlier_versions(tmp_path):
    result = train(dataclasses.replace(SHORT, network="16-6-3", data="no/such-data"), tmp_path / "run", data=small())
    assert predicted(apical.load(tmp_path / "run")[1], small()) == result["predictions"]
    path = tmp_path / "run" / "checkpoint" / "last.ckpt"
    state, seals = checkpoints.load_all(path)
    checkpoints.save(path, state, [{key: one for key, one in seal.items() if key != "data"} for seal in seals])
    with pytest.raises(ValueError, match="no/such-data"):
        apical.load(tmp_path / "run")
    assert predicted(apical.load(tmp_path / "run", data=small())[1], small()) == result["predictions"]


def test_what_was_tested_is_given_and_what_was_best_if_asked(tmp_path):
    config = dataclasses.replace(
        SHORT, network="16-6-3", ema=0.9, best_by="test", precision="64-true", learning_rate=0.5, epochs=6, batch=8
    )
    result = train(config, tmp_path / "run", data=small())
    _, model = apical.load(tmp_path / "run")
    assert predicted(model, small()) == result["predictions"]
    assert not torch.equal(model[1].weight, weights(tmp_path / "run")["1.weight"])
    _, best = apical.load(tmp_path / "run", best=True)
    wrong = sum(a != b for a, b in zip(predicted(best, small()), small().test.labels.tolist(), strict=True))
    assert 100 * wrong / 64 == result["best"]["test_error"]


def test_a_run_amid_training_and_seeds_side_by_side(tmp_path):
    with pytest.raises(BoomError):
        train(SHORT, tmp_path / "cut", data=DIGITS, watcher=boom_at(13))
    _, model = apical.load(tmp_path / "cut")
    assert torch.equal(model[1].weight, weights(tmp_path / "cut")["1.weight"])
    config = CompareConfig(rules=("kp",), seeds=2, epochs=1, network="64-20-10", replicas="on")
    compare(config, tmp_path / "all", data=DIGITS)
    for seed in range(2):
        run = tmp_path / "all" / "runs" / f"kp-{seed}"
        assert predicted(apical.load(run)[1], DIGITS) == RunFolder(run).result["predictions"]
    with pytest.raises(
        RunFolderError, match=r"holds a comparison, and no single run; give one of the folders in its runs/"
    ):
        apical.load(tmp_path / "all")
    with pytest.raises(RunFolderError, match="several runs side by side"):
        apical.load(tmp_path / "all" / "together" / "kp")


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "kp", "precision": "64-true"},
        {"rule": "wm", "connectivity": 0.5},
        {"rule": "dfa", "activation_noise": 0.1},
    ],
)
def test_an_exported_network_is_a_plain_one(tmp_path, capsys, options):
    config = dataclasses.replace(SHORT, **options)
    result = train(config, tmp_path / "run", data=DIGITS)
    main(["export", str(tmp_path / "run"), str(tmp_path / "out.pt")])
    assert 'torch.load("' in capsys.readouterr().out
    plain = build(config.network, shape=DIGITS.shape, classes=10, activation=config.activation)
    plain.load_state_dict(torch.load(tmp_path / "out.pt", weights_only=True))
    assert predicted(plain.eval(), DIGITS) == result["predictions"]


def test_an_export_leaves_what_is_there(tmp_path):
    train(SHORT, tmp_path / "run", data=DIGITS)
    (tmp_path / "mine.pt").write_text("mine")
    with pytest.raises(ValueError, match=r"mine.pt is there already; give another name, or overwrite it"):
        export(tmp_path / "run", tmp_path / "mine.pt")
    with pytest.raises(ValueError, match="is a folder; give the name of a file"):
        export(tmp_path / "run", tmp_path)
    assert (tmp_path / "mine.pt").read_text() == "mine"
    export(tmp_path / "run", tmp_path / "mine.pt", overwrite=True)
    assert torch.load(tmp_path / "mine.pt", weights_only=True)


FORGED = {
    "does not fit its run: 'model'": lambda state, beside: state.pop("model"),
    "does not fit its run: .*size mismatch": lambda state, beside: state["model"].update({"1.weight": torch.zeros(2)}),
    "does not fit its run: ": lambda state, beside: state.update(learner=3),
    "none of a run of apical's .*mapping": lambda state, beside: beside.append(5),
    "none of a run of apical's .*more": lambda state, beside: beside[0].update(more=1),
    "none of a run of apical's .*unpack": lambda state, beside: beside[0].update(data={"shape": 3}),
}
DAMAGED = {
    "has no config.json": lambda run: (run / "config.json").unlink(),
    "can't read .*config.json": lambda run: (run / "config.json").write_text("{"),
    "config.json is no config of a run: .*missing or unknown": lambda run: (run / "config.json").write_text("{}"),
    "written under other settings than config.json has .seed: 0 .* 7": lambda run: changed(run, seed=7),
    "config.json is no config of a run: epochs must be a whole number": lambda run: changed(run, epochs="2"),
    "holds no checkpoint; resume the run": lambda run: (run / LAST).unlink(),
    "damaged: its content does not match its checksum": lambda run: flip(run / LAST),
    "no checkpoint of apical's": lambda run: (run / LAST).write_bytes(b"x"),
    "something other than tensors and numbers": lambda run: pickled(run),
    **{message: lambda run, change=change: forge(run, change) for message, change in FORGED.items()},
}
LAST = "checkpoint/last.ckpt"


@pytest.mark.parametrize("message", DAMAGED)
def test_what_is_forged_or_damaged_is_refused_by_one_sentence(run, tmp_path, capsys, message):
    shutil.copytree(run, tmp_path / "run")
    DAMAGED[message](tmp_path / "run")
    with pytest.raises((RunFolderError, CheckpointError), match=message):
        apical.load(tmp_path / "run")
    with pytest.raises(SystemExit) as error:
        main(["export", str(tmp_path / "run"), str(tmp_path / "out.pt")])
    assert error.value.code == 2
    assert capsys.readouterr().err.startswith("apical: error:")
    assert not (tmp_path / "out.pt").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(TrainConfig(rule="kp", network="64-8-10", epochs=1, align_every=0), folder, data=DIGITS)
    return folder


def changed(run, **options):
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **options}))


def flip(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


def forge(run, change):
    path = run / LAST
    state, beside = checkpoints.load_all(path)
    change(state, beside)
    checkpoints.save(path, state, beside)


def pickled(run):
    """A checkpoint that would run code if it was unpickled."""
    buffer = io.BytesIO()
    torch.save({"model": Print()}, buffer)
    payload = buffer.getvalue()
    head = b"apical checkpoint 1\n" + hashlib.sha256(payload).hexdigest().encode() + b"\n"
    (run / LAST).write_bytes(head + payload)


class Print:
    def __reduce__(self):
        return print, ("unpickled",)
