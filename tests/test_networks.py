from __future__ import annotations

import collections
import sys
import textwrap
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import apical
from apical.networks import (
    ACTIVATIONS,
    NETWORKS,
    build,
    lansdell2020_cnn,
    mlp,
    parse_sizes,
    resnet18,
    resnet20,
    resnet50,
    vit_s16,
)
from apical.networks.resnet import BasicBlock
from apical.networks.transformer import GPT, SelfAttention

CIFAR = (3, 32, 32)

ALIKE = ("resnet32", "resnet56", "resnet50-", "resnet18-norm", "resnet18-cifar-norm", "amit2019-deep")
"""Beginnings of the names of networks for which another one stands in quick tests."""
EVERY = [pytest.param(name, marks=pytest.mark.slow if name.startswith(ALIKE) else ()) for name in NETWORKS]


def shapes_of(model: nn.Module, x: torch.Tensor) -> dict[str, tuple[int, ...]]:
    """Output shape of every module without children, in order of the calls."""
    found: dict[str, tuple[int, ...]] = {}
    handles = [
        module.register_forward_hook(lambda m, a, y, name=name: found.update({name: tuple(y.shape[1:])}))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    with torch.no_grad():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return found


# Sizes and fully connected networks ------------------------------------------------------------------------------------


@given(sizes=st.lists(st.integers(1, 5000), min_size=2, max_size=6))
def test_sizes_survive_being_written(sizes):
    assert list(parse_sizes("-".join(map(str, sizes)))) == sizes


@pytest.mark.parametrize(
    "text", ["", "784", "784-", "-784-10", "784--10", "784-0-10", "784x10", "784-ten-10", "1.5-10"]
)
def test_malformed_sizes_are_named_with_an_example(text):
    with pytest.raises(ValueError, match="784-800-800-10") as caught:
        parse_sizes(text)
    assert repr(text) in str(caught.value)


@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_mlp_against_numpy(sizes, seed):
    torch.manual_seed(seed)
    net = mlp(sizes).double()
    x = torch.randn(3, 1, sizes[0], dtype=torch.float64)
    h = x.numpy().reshape(3, -1)
    linear = [module for module in net if isinstance(module, nn.Linear)]
    for layer in linear[:-1]:
        h = np.tanh(h @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    h = h @ linear[-1].weight.detach().numpy().T + linear[-1].bias.detach().numpy()
    assert isinstance(net[0], nn.Flatten)
    assert [linear[0].in_features, *(layer.out_features for layer in linear)] == sizes
    np.testing.assert_allclose(net(x).detach().numpy(), h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("tanh", torch.tanh),
        ("relu", torch.relu),
        ("sigmoid", torch.sigmoid),
        ("Logistic", torch.sigmoid),
        ("identity", lambda x: x),
        ("linear", lambda x: x),
        ("gelu", F.gelu),
        ("leaky_relu", F.leaky_relu),
    ],
)
def test_activations_by_name(name, function):
    net = mlp([2, 3, 2], name)
    x = torch.randn(4, 2)
    assert torch.equal(net(x), net[3](function(net[1](x))))


def test_unknown_activation_offers_the_nearest():
    with pytest.raises(ValueError, match=r"'rel'.*relu"):
        build("64-20-10", shape=(1, 8, 8), classes=10, activation="rel")


# The papers' networks --------------------------------------------------------------------------------------------------


def test_lansdell2020_cnn_is_the_printed_one():
    torch.manual_seed(0)
    net = lansdell2020_cnn()
    shapes = list(shapes_of(net, torch.randn(2, *CIFAR)).values())
    pooled = [shape for shape, module in zip(shapes, net, strict=True) if isinstance(module, nn.MaxPool2d)]
    assert pooled == [(32, 16, 16), (128, 8, 8), (256, 4, 4)]
    kinds = [type(module).__name__ for module in net]
    assert kinds == ["Conv2d", "Tanh", "MaxPool2d"] * 3 + ["Flatten"] + ["Linear", "Tanh", "Dropout"] * 2 + ["Linear"]
    assert [module.out_features for module in net if isinstance(module, nn.Linear)] == [2048, 2048, 10]
    assert [tuple(module.kernel_size) for module in net if isinstance(module, nn.Conv2d)] == [(3, 3), (5, 5), (5, 5)]


def test_lansdell2020_cnn_has_the_cost_of_the_paper():
    net = lansdell2020_cnn()
    total = 0
    for module, shape in zip(net, shapes_of(net, torch.randn(2, *CIFAR)).values(), strict=True):
        if hasattr(module, "weight"):
            positions = int(np.prod(shape[1:])) if len(shape) == 3 else 1
            total += module.weight.numel() * positions
    assert round(total / 1e6) == 92  # Millions of multiply-accumulates per sample, reference 2.3.


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_lansdell2020_cnn_pools_as_tensorflows_same_padding_does(size):
    pool = next(module for module in lansdell2020_cnn() if isinstance(module, nn.MaxPool2d))
    x = torch.randn(2, 3, size, size)
    # For even sizes, kernel 3 and stride 2, SAME pads one row and one column, after the last ones.
    padded = F.pad(x, (0, 1, 0, 1), value=-torch.inf)
    assert torch.equal(pool(x), F.max_pool2d(padded, 3, 2))


def test_lansdell2020_cnn_arguments():
    net = lansdell2020_cnn(classes=100, dropout=0.25)
    assert [module.p for module in net if isinstance(module, nn.Dropout)] == [0.25, 0.25]
    assert net(torch.randn(2, *CIFAR)).shape == (2, 100)


def test_resnet20_has_twenty_layers_and_the_known_number_of_parameters():
    net = resnet20()
    shapes = shapes_of(net, torch.randn(2, *CIFAR))
    layers = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    }
    assert len(layers) == 20
    # He et al. 2016, table 6: 0.27 M. Option B adds two 1x1 convolutions with batch norm.
    assert sum(p.numel() for p in net.parameters()) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    assert collections.Counter(shapes[name] for name in layers) == {
        (16, 32, 32): 7,
        (32, 16, 16): 6,
        (64, 8, 8): 6,
        (10,): 1,
    }


def test_resnet_block_adds_its_branch_to_the_shortcut():
    torch.manual_seed(0)
    block = BasicBlock(4, 4, 1).eval()
    x = torch.randn(2, 4, 6, 6)
    branch = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), torch.relu(x + branch))
    halving = BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(halving.bn2.weight)
    torch.testing.assert_close(halving(x), torch.relu(halving.shortcut(x)))
    assert halving(x).shape == (2, 8, 3, 3)


@pytest.mark.parametrize(("make", "counted", "widths"), [(resnet18, 18, (64, 512)), (resnet50, 50, (256, 2048))])
def test_resnets_for_imagenet_have_the_layers_of_table_1(make, counted, widths):
    with torch.device("meta"):
        net = make(classes=7)
        shapes = shapes_of(net, torch.empty(2, 3, 224, 224))
    layers = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == counted
    sizes = [shapes[name][1:] for name in layers[:-1]]
    assert [size[0] for size in dict.fromkeys(sizes)] == [112, 56, 28, 14, 7]
    last = [shapes[name] for name in layers[:-1]]
    assert max(shape[0] for shape in last if shape[1] == 56) == widths[0]
    assert last[-1] == (widths[1], 7, 7)
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 7)


def test_attention_is_the_softmax_of_products_and_a_decoder_sees_nothing_to_come():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    layer = SelfAttention(6, 2, causal=True).double()
    q, k, v = (part.unflatten(2, (2, 3)).transpose(1, 2) for part in layer.qkv(x).chunk(3, 2))
    scores = (q @ k.mT / 3**0.5).masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
    expected = layer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected)
    net = GPT(vocabulary=9, context=6, width=8, depth=2, heads=2)
    assert net.head.weight is net.tokens.weight
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 8, 7]])
    first, second = net(tokens)
    torch.testing.assert_close(first[:2], second[:2])
    assert not torch.allclose(first[2:], second[2:])


def test_a_gpt_by_name_has_its_numbers_of_units_and_blocks():
    net = build("gpt-128x3", shape=(12,), classes=256)
    assert net(torch.zeros(2, 12, dtype=torch.long)).shape == (2, 12, 256)
    assert (len(net.blocks), net.blocks[0].attention.heads, net.places.weight.shape) == (3, 2, (12, 128))
    assert net.head.weight is not net.tokens.weight
    with pytest.raises(
        ValueError, match="width must be less than 64, or a multiple of it, the units of a head, got 100"
    ):
        build("gpt-100x2", shape=(12,), classes=256)


def test_a_vision_transformer_takes_whole_patches_and_reads_its_class_token():
    torch.manual_seed(0)
    net = vit_s16(classes=4, size=32)
    assert net(torch.randn(2, *CIFAR)).shape == (2, 4)
    with pytest.raises(ValueError, match="images of 28 x 28 are not made of patches of 16 x 16"):
        build("vit-s16", shape=(1, 28, 28), classes=10)


@pytest.mark.parametrize("spec", ["12-8-8-10", *EVERY])
def test_every_module_is_used_once_and_not_in_place(spec):
    shape = (3, 2, 2) if spec[0].isdigit() else CIFAR
    net = build(spec, shape=shape, classes=10)
    calls: collections.Counter[str] = collections.Counter()
    for name, module in net.named_modules():
        assert not getattr(module, "inplace", False), name
        module.register_forward_hook(lambda m, a, y, name=name: calls.update([name]))
    net(torch.randn(2, *shape))
    assert calls == dict.fromkeys(dict(net.named_modules()), 1)


@pytest.mark.parametrize("spec", ["3072-20-10", *EVERY])
@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_rules_learn_on_every_network(spec, rule):
    torch.manual_seed(0)
    net = build(spec, shape=CIFAR, classes=10)
    x, y = torch.randn(4, *CIFAR), torch.arange(4)
    apical.attach(net, rule, example_input=x)
    F.cross_entropy(net(x), y).backward()
    learning = [p for p in net.parameters() if p.requires_grad]
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in learning)


# Building from a description -------------------------------------------------------------------------------------------


def test_build_leaves_the_network_in_train_mode_and_draws_nothing_but_its_weights():
    torch.manual_seed(3)
    expected = resnet20(classes=7, channels=1)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    found = build("resnet20", shape=(1, 28, 28), classes=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in found.modules())
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("spec", "classes", "way_out"),
    [("784-20-10", 10, "write 64-20-10"), ("64-20-12", 10, "write 64-20-10"), ("3-4", 2, "write 64-2")],
)
def test_sizes_that_do_not_match_the_data(spec, classes, way_out):
    with pytest.raises(ValueError, match=way_out) as caught:
        build(spec, shape=(1, 8, 8), classes=classes)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize("spec", ["64-x-10", "64x10", "64-", "64--10"])
def test_malformed_sizes_are_not_taken_for_a_name(spec):
    with pytest.raises(ValueError, match="no size string"):
        build(spec, shape=(1, 8, 8), classes=10)


def test_unknown_network_offers_the_nearest():
    with pytest.raises(ValueError, match=r"unknown network 'resnet-20'; did you mean resnet20"):
        build("resnet-20", shape=CIFAR, classes=10)
    with pytest.raises(ValueError, match=r"lansdell2020-cnn, resnet20, .*module:function"):
        build("zzz", shape=CIFAR, classes=10)


def test_named_network_that_does_not_take_the_data():
    with pytest.raises(ValueError, match=r"'lansdell2020-cnn' does not take the data's images, 1 x 28 x 28"):
        build("lansdell2020-cnn", shape=(1, 28, 28), classes=10)


OWN = """
    from __future__ import annotations

    from dataclasses import dataclass

    from torch import nn


    @dataclass
    class Options:
        width: int = 5


    def make_net():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, Options().width), nn.Linear(Options().width, 10))


    def for_data(classes, shape=(1, 1, 1), *, width=4):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], width), nn.Linear(width, classes))


    def anything(**options):
        assert not options
        return make_net()


    def imports_late():
        import {stem}_helper
        return {stem}_helper.make()


    def draws():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10), nn.Dropout(0.5))


    def double():
        return make_net().double()


    def several():
        class Several(nn.Linear):
            def forward(self, x):
                return {{"logits": super().forward(x.flatten(1))}}

        return Several(64, 10)


    def weightless():
        return nn.Flatten()


    def needs(width, classes):
        return None


    def fails():
        raise KeyError("weights.pt")


    def nothing():
        return None


    def narrow():
        return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))


    def few():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))


    net = nn.Linear(64, 10)
    number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch, request):
    """A user's folder, as the current one, with a module of networks; gives the module's name."""
    stem = f"own_{zlib.crc32(request.node.name.encode())}"
    (tmp_path / f"{stem}.py").write_text(textwrap.dedent(OWN.format(stem=stem)))
    (tmp_path / f"{stem}_helper.py").write_text(f"import {stem}\n\nmake = {stem}.make_net\n")
    monkeypatch.chdir(tmp_path)
    before, path = set(sys.modules), list(sys.path)
    yield stem
    assert sys.path == path
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def digits(spec: str) -> nn.Module:
    return build(spec, shape=(1, 8, 8), classes=10)


def widths(net: nn.Module) -> list[int]:
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return [linear[0].in_features, *(layer.out_features for layer in linear)]


@pytest.mark.parametrize("where", ["{}", "{}.py", "./{}.py", "{folder}/{}.py"])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("make_net", [64, 5, 10]),
        ("for_data", [64, 4, 10]),
        ("anything", [64, 5, 10]),
        ("imports_late", [64, 5, 10]),
        ("draws", [64, 10]),
        ("double", [64, 5, 10]),
    ],
)
def test_networks_of_the_users_own(own, tmp_path, where, function, expected):
    net = digits(f"{where.format(own, folder=tmp_path)}:{function}")
    assert widths(net) == expected
    assert net.training


def test_files_need_not_be_in_the_current_folder(own, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=rf"no module named '{own}'.*path/to/file\.py:function"):
        digits(f"{own}:make_net")
    assert widths(digits(f"../{own}.py:imports_late")) == [64, 5, 10]


def test_files_of_one_name_are_told_apart(tmp_path):
    for folder, width in (("a", 3), ("b", 4)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_same.py").write_text(
            f"from apical.networks import mlp\n\n\ndef make():\n    return mlp([64, {width}, 10])\n"
        )
    assert [widths(digits(f"{tmp_path / folder}/own_same.py:make"))[1] for folder in "ab"] == [3, 4]


def test_every_call_gives_a_new_network(own):
    first, second = digits(f"{own}:make_net"), digits(f"{own}:make_net")
    assert not {id(p) for p in first.parameters()} & {id(p) for p in second.parameters()}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("make_nets", "'make_nets' is no function in .*did you mean 'make_net'"),
        ("number", "no function but a int"),
        ("net", "a network already.*name a function that makes it"),
        ("needs", r"needs width, but.*give the others defaults"),
        ("fails", r"fails\(\) failed with KeyError: 'weights.pt' \(.*own_\d+\.py, line \d+\)"),
        ("nothing", "returned NoneType, not an nn.Module"),
        ("narrow", r"does not take the data's images, 1 x 8 x 8: RuntimeError"),
        ("several", "returns a dict, not a tensor.*return the classes' values alone"),
        ("weightless", "has no weights, so there is nothing to learn"),
        ("few", r"gives \[9\] values per image, but the data has 10 classes"),
    ],
)
def test_faults_of_the_users_function(own, function, message):
    spec = f"{own}:{function}"
    with pytest.raises(ValueError, match=message) as caught:
        digits(spec)
    assert repr(spec) in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:make", "no module named 'no_such_module', neither installed nor in"),
        ("no_such_package.inner:make", "no module named 'no_such_package'"),
        ("no_such_file.py:make", r"no file .*no_such_file\.py; a relative path starts at"),
        (":make", "malformed network ':make'; write module:function"),
        ("torch:", "malformed network 'torch:'"),
        ("torch:nn.Linear", "malformed network"),
    ],
)
def test_networks_that_can_not_be_found(own, spec, message):
    with pytest.raises(ValueError, match=message):
        digits(spec)


@pytest.mark.parametrize("content", ["import no_such_library", "1 / 0", "def make(:"])
@pytest.mark.parametrize("suffix", ["", ".py"])
def test_modules_that_can_not_be_imported_say_what_and_where(own, tmp_path, content, suffix):
    (tmp_path / "own_broken.py").write_text(f"x = 1\n{content}\n")
    with pytest.raises(ValueError, match=r"importing .*own_broken.* failed with \w+Error: .*line 2"):
        digits(f"own_broken{suffix}:make")
    assert not [name for name in sys.modules if name.startswith("own_broken")]


def test_activations_are_made_anew():
    for make in ACTIVATIONS.values():
        assert make() is not make()
