"""What takes layers apart or puts others in their place: right, or refused in words of our own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

import apical
from learning import attach
from networks import IMAGES, X, Y, plain_chain

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit.script:DeprecationWarning",
    "ignore:torch.ao.quantization is deprecated:DeprecationWarning",
    "ignore:torch.quantize_per_tensor:UserWarning",
)


@pytest.mark.parametrize("rule", ["fa", "dfa", "np"])
@pytest.mark.parametrize(
    ("change", "why"),
    [
        (torch.jit.script, "torch.jit.script can't compile '0'"),
        (lambda net: torch.ao.quantization.quantize_dynamic(net, {nn.Linear}), "quantization does not know '0'"),
        (lambda net: torch.ao.quantization.quantize_dynamic(net), "quantization does not know '0'"),
    ],
)
def test_what_would_leave_the_synapses_out_is_refused_and_the_way_out_works(rule, change, why):
    net = plain_chain()
    attach(net, rule)
    with pytest.raises(RuntimeError, match=rf"{why}.*apical\.learner_of\(copy\.deepcopy\(model\)\)\.detach\(\)"):
        change(net)
    F.cross_entropy(net(X), Y).backward()
    changed = change(apical.learner_of(copy.deepcopy(net)).detach())
    torch.testing.assert_close(changed(X), net(X), rtol=0.1, atol=0.1)


def test_a_convolution_is_refused_too():
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(48, 3))
    apical.attach(net, "fa", example_input=IMAGES)
    with pytest.raises(RuntimeError, match="can't compile '0'"):
        torch.jit.script(net)


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("rule", ["fa", "dfa", "kp", "usf", "kp-direct"])
@pytest.mark.parametrize("each", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_parameters_in_shards_learn_as_whole_ones(rule, each, alone):
    if rule == "kp-direct" and each:
        pytest.skip("the output's error comes before the layers' shards are together; `test_shards` has what is said")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    net, whole = plain_chain(), plain_chain()
    for one in (net, whole):
        apical.attach(one, rule, example_input=X, generator=torch.Generator().manual_seed(0))
    for layer in (net[0], net[2], net[4]) if each else ():
        fully_shard(layer, mesh=mesh)
    fully_shard(net, mesh=mesh)
    for _ in range(2):
        for one in (net, whole):
            one.zero_grad()
            F.cross_entropy(one(X), Y).backward()
            torch.optim.SGD(one.parameters(), 0.1, weight_decay=0.01).step()
    mine = {n: p.full_tensor() for n, p in net.named_parameters()}
    torch.testing.assert_close(mine, {n: p.data for n, p in whole.named_parameters()})
