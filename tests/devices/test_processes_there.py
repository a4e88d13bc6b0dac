"""Processes whose tensors lie on a device: what they exchange lies where their group takes it."""

import pytest
import torch
import torch.distributed as dist
from elsewhere import DEVICE, Watched
from several_processes import needs_gloo

from widefit.processes import Processes
from widefit.processes.group import backends_of, place_for


@pytest.mark.parametrize(
    ("config", "device", "expected"),
    [
        ("cpu:gloo,cuda:gloo", "cpu", "cpu"),
        ("cpu:gloo,cuda:gloo", "cuda", "cpu"),
        ("cpu:gloo,cuda:gloo", "xpu", "cpu"),
        ("cuda:nccl", "cuda", "cuda"),
        ("cuda:nccl", "cpu", "cuda"),
        ("cpu:gloo,cuda:nccl", "cuda", "cuda"),
        ("cpu:gloo,cuda:nccl", "cpu", "cpu"),
        ("xpu:xccl", "cpu", "xpu"),
    ],
)
def test_tensors_lie_where_the_backend_takes_them(config: str, device: str, expected: str):
    assert place_for(backends_of(config), device) == expected


@needs_gloo
def test_gloo_is_given_what_lies_on_the_host(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        with Watched():
            group, x = Processes(), torch.arange(4.0).to(DEVICE)
            for found in (group.sum(x), group.same(x), group.joined(x)):
                assert found.device.type == DEVICE.type
                assert found.tolist() == [0, 1, 2, 3]
            group.spread(x, 0)
            assert group.gathered({"a": 1}) == [{"a": 1}]
            assert (group.norm(x), float(group.length(x))) == (14**0.5, 14**0.5)
            assert group.dots((x, x)) == group.products((x, x)).tolist() == [14.0]
            assert (group.any(True), group.any(False)) == (True, False)
            group.meet()
    finally:
        dist.destroy_process_group()
