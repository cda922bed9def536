"""A batch of one works, whatever the size of the deepest map, and several processes share one."""

import copy

import torch
from torch import nn

from common.networks.norm import shared_batch_norm, steady_batch_norm


def test_one_value_per_channel_is_normalized_by_the_running_statistics():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).train()
    plain[1].running_mean.normal_()
    plain[1].running_var.uniform_(0.5, 2)
    steady = steady_batch_norm(copy.deepcopy(plain))
    one = torch.randn(1, 3, 3, 3)
    expected = copy.deepcopy(plain).eval()(one)
    assert torch.allclose(steady(one), expected)
    assert steady(one).sum().requires_grad
    assert torch.equal(steady[1].running_mean, plain[1].running_mean)  # one value says nothing about the spread
    many = torch.randn(2, 3, 6, 6)
    assert torch.equal(steady(many), plain(many)) and torch.equal(steady[1].running_var, plain[1].running_var)
    assert steady.state_dict().keys() == plain.state_dict().keys()


def test_shared_statistics_are_pytorchs_own_where_that_knows_the_device():
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).train()
    on_gpu = shared_batch_norm(copy.deepcopy(plain), torch.device("cuda"))
    assert type(on_gpu[1]) is nn.SyncBatchNorm and on_gpu.state_dict().keys() == plain.state_dict().keys()
    shared, x = shared_batch_norm(copy.deepcopy(plain), torch.device("cpu")), torch.randn(2, 3, 6, 6)
    assert type(shared[1]).__name__ == "SharedBatchNorm" and shared.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(shared(x), plain(x))  # of one process, the same by other arithmetic
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value)
    half = shared_batch_norm(nn.BatchNorm2d(3), torch.device("cpu"))(x.bfloat16())
    assert half.dtype == torch.bfloat16
