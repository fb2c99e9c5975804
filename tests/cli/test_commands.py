import functools
import json
import os
import re
import subprocess
import sys

import pytest

from apical import benchmark
from apical.cli import terminal
from apical.cli.command_line import main
from apical.training import Interrupted
from processes import Forked, apical, as_torchrun_starts, free_port


def run(*arguments, capsys=None, code=None):
    """Output of a command; `code` is the exit status expected, None for success."""
    if code is None:
        main(list(arguments))
    else:
        with pytest.raises(SystemExit) as exit:
            main(list(arguments))
        assert exit.value.code == code
    return capsys.readouterr()


def words(text):
    """Without the line breaks of a narrow terminal."""
    return " ".join(text.split())


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


SHORT = ("--network", "64-20-10", "--epochs", "1")


RECIPE = (
    "data network activation loss connectivity whole-output optimizer learning-rate weight-decay scheduler epochs batch "
    "input-noise activation-noise test-every align-every checkpoint-every precision memory-format accelerator "
    "accumulate clip decayed warmup-epochs cooldown-epochs bias-rate label-smoothing ema mirrored best-by "
    "test-split validation validation-seed images augment normalize stream image-size shuffle-buffer workers skip-corrupt window"
)
OPTIONS = {
    "compare": f"{RECIPE} rules seeds first-seed replicas folder resume overwrite time-steps captured",
    "speedrun": "rules seeds first-seed data images epochs batch learning-rate network precision accelerator folder resume "
    "overwrite json page time-steps captured",
    "train": f"{RECIPE} rule seed folder resume overwrite captured",
    "export": "best overwrite",
    "queue": "folder minutes hand-back take retry show",
    "audit": "rule data network activation loss seed",
    "rules": "",
    "report": "picture",
    "benchmark": "networks rules batch modes precision seconds repeats threads optimizer device mixed local json figure read",
    "papers": "pages judge",
    "reproduce": "seeds first-seed scale only data precision folder resume using overwrite publish",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_shows_examples_and_every_option(command, capsys):
    out = run(command, "--help", capsys=capsys, code=0).out
    assert f"apical {command}" in out
    assert "Try:" in out
    found = set(re.findall(r"^[│|\s]*(?:-h, )?--([a-z][a-z-]*)", out, re.M))
    assert found == {"help", *OPTIONS[command].split()}


def test_compare_prints_the_table_and_writes_the_report(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "step_ratios", functools.partial(benchmark.step_ratios, seconds=0.3))
    out = run("compare", *SHORT, "--rules", "bp", "fa", "usf", "--seeds", "2", "--folder", "all", capsys=capsys).out
    row = next(line for line in out.splitlines() if line.startswith("│ usf"))
    assert "±" in row
    assert "signs" in row
    found = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert f"{found['table'][1]['test_error_mean']:.2f}" in out
    assert found["table"][2]["step_ratio"] > 0
    assert (tmp_path / "all" / "report.html").stat().st_size > 1_000_000
    again = run("compare", "--resume", "all", "--no-time-steps", capsys=capsys).out
    assert f"{found['table'][1]['test_error_mean']:.2f}" in again


def test_train_resumes_from_the_folder_alone(tmp_path, capsys):
    out = run("train", *SHORT, "--rule", "urfb:epsilon=0.5", "--folder", "one", capsys=capsys).out
    assert "test error" in out
    assert json.loads((tmp_path / "one" / "config.json").read_text())["rule"] == "urfb:epsilon=0.5"
    assert words(run("train", "--resume", "one", capsys=capsys).out).startswith("test error")


def test_thinned_networks(tmp_path, capsys):
    run("train", *SHORT, "--connectivity", "0.5", "--whole-output", "--folder", "one", capsys=capsys)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["connectivity"], config["whole_output"]) == (0.5, True)
    assert words(run("train", "--resume", "one", capsys=capsys).out).startswith("test error")


def test_train_makes_a_folder_of_its_own(tmp_path, capsys):
    run("train", *SHORT, capsys=capsys)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("digits-fa-0-")


def test_audit_names_every_layer(capsys):
    out = run("audit", "--rule", "usf", "--network", "64-20-10", capsys=capsys).out
    assert [line.split("│")[3].strip() for line in out.splitlines() if line.startswith("│ ")] == ["nothing", "signs"]
    assert "in all: signs" in out


def test_audit_of_a_network_of_ones_own(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes))\n"
    )
    out = run("audit", "--rule", "dfa", "--network", "mine.py:net", capsys=capsys).out
    assert "in all: normalization scale" in out


def test_rules_lists_and_explains(capsys):
    assert "Kolen-Pollack" in run("rules", capsys=capsys).out
    out = run("rules", "urfb", capsys=capsys).out
    assert "epsilon=1.0" in out
    assert "Amit" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", "--rule", "fq"), "unknown rule 'fq'; did you mean 'fa'?"),
        (("train", "--network", "784-10"), "the data has 64 values per image"),
        (("train", "--data", "./nowhere"), "nowhere"),
        (("train", "--resume", "nothing"), "--resume: folder nothing holds no run to resume"),
        (("train", "--optimizer", "SGDD"), "did you mean 'SGD'"),
        (("train", "--connectivity", "0"), "fraction of connections that exist, above 0 and at most 1, got 0"),
        (("train", "--rule", "np:solver=ridge", "--connectivity", "0.5"), "use solver='sgd'"),
        (("compare", "--rules", "fa", "fa"), "rules name fa more than once"),
        (("audit", "--network", "resnet21"), "did you mean"),
        (("report", "nothing"), "nothing"),
        (("rules", "kpp"), "did you mean"),
        (("benchmark", "--networks", "resnet200"), "did you mean"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments, message, tmp_path, capsys):
    err = words(run(*arguments, capsys=capsys, code=2).err)
    assert "apical: error:" in err or "Value error" in err  # tyro frames what its options refuse.
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "config", "message"),
    [
        ("compare", {"rule": "fa"}, "folder one holds a run of `apical train`; go on with: apical train --resume one"),
        ("train", {"rules": ["fa"]}, "holds a run of `apical compare`; go on with: apical compare --resume one"),
        ("reproduce", {"rules": ["fa"]}, "holds a run of `apical compare`; go on with: apical compare --resume one"),
        ("train", {"experiment": "a/b"}, "go on with: apical reproduce --resume one"),
        ("compare", {}, "config.json is no config of `apical compare`: accelerator, "),
        ("compare", [], "config.json is no config of `apical compare`"),
        ("train", {"rule": "fa"}, "config.json is no config of `apical train`: accelerator, "),
        (
            "reproduce",
            {"experiment": "lillicrap2016/fig2a"},
            "conditions, data, lengths, scale, seeds missing or unknown",
        ),
    ],
)
def test_a_config_of_something_else_or_cut_short_is_told(command, config, message, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    assert message in words(run(command, "--resume", "one", capsys=capsys, code=2).err)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "[]", "one/config.json"),
        ("result.json", "{}", "one/result.json holds no result; delete it"),
        ("result.json", "[]", "one/result.json"),
    ],
)
def test_a_damaged_run_is_told(file, content, message, tmp_path, capsys):
    run("train", *SHORT, "--folder", "one", capsys=capsys)
    (tmp_path / "one" / file).write_text(content)
    assert message in words(run("train", "--resume", "one", capsys=capsys, code=2).err)


@pytest.mark.parametrize("command", ["train", "compare"])
@pytest.mark.parametrize("name", ["a[/abc]", "b[abc]", "long" * 50])
def test_the_folder_printed_is_the_folder_written(command, name, tmp_path, capsys):
    options = () if command == "train" else ("--rules", "shallow", "--seeds", "1", "--no-time-steps")
    out = run(command, *SHORT, *options, "--folder", f"runs/{name}", capsys=capsys).out
    expected = f"run folder: runs/{name}" if command == "train" else f"report: runs/{name}/report.html"
    assert expected in out.splitlines()


def test_names_in_brackets_are_no_markup(tmp_path, capsys):
    (tmp_path / "my[red]net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    assert "my[red]net.py:net" in run("audit", "--network", "my[red]net.py:net", capsys=capsys).out


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("...")
    err = run("train", *SHORT, "--folder", "precious", "--overwrite", capsys=capsys, code=2).err
    assert "holds no run" in err
    assert (tmp_path / "precious" / "thesis.tex").exists()


@pytest.mark.parametrize("config", ['{"model_type": "bert"}', '{"rule": "thumb"}', "[1]", "{"])
def test_a_config_of_something_else_makes_a_folder_no_run(config, tmp_path, capsys):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "config.json").write_text(config)
    (tmp_path / "precious" / "weights.bin").write_text("...")
    run("train", *SHORT, "--folder", "precious", "--overwrite", capsys=capsys, code=2)
    assert (tmp_path / "precious" / "weights.bin").exists()


@pytest.mark.parametrize(
    ("command", "bad"),
    [
        (("train", *SHORT), ("--data", "nowhere/x/y")),
        (("train", *SHORT), ("--network", "64-x-10")),
        (("compare", *SHORT, "--rules", "shallow", "--seeds", "1", "--no-time-steps"), ("--data", "nowhere/x/y")),
        (("reproduce", "lillicrap2016/fig2a", "--scale", "0.01", "--seeds", "1", "--only", "fa"), ("--scale", "nan")),
        (("reproduce", "lillicrap2016/fig2a", "--scale", "0.01", "--seeds", "1", "--only", "fa"), ("--only", "typo")),
        (
            ("reproduce", "lillicrap2016/fig2a", "--scale", "0.01", "--seeds", "1", "--only", "fa"),
            ("--using", "nothing"),
        ),
    ],
)
def test_bad_input_costs_no_earlier_run(command, bad, tmp_path, capsys):
    run(*command, "--folder", "one", capsys=capsys)
    before = {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()}
    run(*command, *bad, "--folder", "one", "--overwrite", capsys=capsys, code=2)
    assert {path: path.read_bytes() for path in (tmp_path / "one").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("command", "more", "other", "told"),
    [
        ("train", (), ("--seed", "7"), "with --seed 0;"),
        ("train", (), ("--folder", "two"), "with no --folder;"),
        (
            "compare",
            ("--rules", "shallow", "--seeds", "1", "--no-time-steps"),
            ("--rules", "fa", "--seeds", "2"),
            "--seeds 1",
        ),
        (
            "compare",
            ("--rules", "shallow", "--seeds", "1", "--no-time-steps"),
            ("--overwrite",),
            "with no --overwrite;",
        ),
    ],
)
def test_a_resumed_run_is_not_another_one(command, more, other, told, tmp_path, capsys):
    run(command, *SHORT, *more, "--folder", "one", capsys=capsys)
    assert told in words(run(command, "--resume", "one", *other, capsys=capsys, code=2).err)
    run(
        command, "--resume", "one", *SHORT, *more, capsys=capsys
    )  # The options that it was started with say nothing else.


def test_a_resumed_experiment_is_not_another_one(capsys):
    start = ("reproduce", "lillicrap2016/fig2a", "--scale", "0.01", "--seeds", "1", "--only", "fa", "shallow")
    run(*start, "--folder", "one", capsys=capsys)
    for other in (("--seeds", "2"), ("--only", "bp"), ("--using", "two")):
        assert other[0] in words(run("reproduce", "--resume", "one", *other, capsys=capsys, code=2).err)
    run(*start, "--resume", "one", capsys=capsys)


def test_overwrite_replaces_a_run(tmp_path, capsys):
    run("train", *SHORT, "--folder", "one", capsys=capsys)
    run("train", *SHORT, "--folder", "one", "--rule", "kp", "--overwrite", capsys=capsys)
    assert json.loads((tmp_path / "one" / "config.json").read_text())["rule"] == "kp"


def test_a_diverging_run_ends_with_status_1(capsys):
    diverging = ("--activation", "relu", "--learning-rate", "1e30", "--rule", "bp")
    assert "loss became" in run("train", *SHORT, *diverging, capsys=capsys, code=1).err


def _on_a_rank(rank, port, *options):
    as_torchrun_starts(rank, port)
    apical(*options)


def trained_by_two(folder):
    result = json.loads((folder / "result.json").read_text())
    assert result["steps"] == 23
    assert result["test_error"] < 70


def test_two_processes_as_torchrun_starts_them(tmp_path):
    options = ("train", *SHORT, "--rule", "kp", "--accelerator", "cpu", "--folder", "both")
    port = free_port()
    ranks = [Forked(_on_a_rank, rank, port, *options) for rank in range(2)]
    for rank in ranks:
        _, err = rank.communicate(timeout=300)
        assert rank.returncode == 0, err
    trained_by_two(tmp_path / "both")


@pytest.mark.slow
def test_two_processes_by_torchrun(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "apical", "train", *SHORT]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--rule", "kp", "--accelerator", "cpu", "--folder", "both"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    trained_by_two(tmp_path / "both")


def test_a_long_message_stays_on_one_line_so_that_its_paths_can_be_copied(capsys):
    path = "/".join(["folder"] * 40)
    with pytest.raises(SystemExit), terminal.plain_errors():
        raise Interrupted(f"the run in {path} can be resumed")
    assert f"the run in {path} can be resumed" in capsys.readouterr().err
