"""Two processes under DDP and FSDP2 against one process that has all the data."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_TWO = """
    import sys
    import torch, torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard
    from lotion_theory.training import LotionPenalty, Monitor, StraightThrough, gnb_update, quantized
    from tests.torch_models import mlp

    rank, store = int(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 8, generator=generator), torch.randint(0, 4, (8,), generator=generator)
    mine = slice(4 * rank, 4 * rank + 4)

    def run(wrap, rows, **settings):
        model = mlp()
        model = wrap(model)
        penalty = LotionPenalty(model, "int4/absmax/row", **settings)
        st = StraightThrough(model, "int4/absmax/row", "rr_ste")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(3):
            with st:
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            if penalty.kind == "gnb":
                gnb_update(penalty, model(x[rows]), lambda loss: loss.backward(), batch_size=8)
            else:
                penalty.observe(batch_size=8)
            st.before_step_()
            penalty.add_gradient_()
            optimizer.step(), optimizer.zero_grad(), penalty.step(), st.step()
        measured = Monitor(penalty).measure()
        with quantized(penalty):
            cast = whole(next(model.parameters())).clone()
        weights = [whole(p) for p in model.parameters()]
        return [*weights, cast, whole(penalty.state_dict()["curvature"]["average"]["0.weight"]), measured]

    def whole(p):
        p = p.detach()
        return p.full_tensor() if hasattr(p, "full_tensor") else p.clone()

    def shard(model):
        for layer in (model[0], model[2]):
            fully_shard(layer)
        return fully_shard(model)

    # Reference: one process with all the data. Sums over halves of a batch differ in the last bits.
    plain = run(lambda model: model, slice(None))
    for wrap in (nn.parallel.DistributedDataParallel, shard):
        *tensors, measured = run(wrap, mine)
        for a, b in zip(tensors, plain[:-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
        for key in ("penalty", "penalty_gradient", "on_grid", "outer_tenth"):
            assert abs(measured[key] - plain[-1][key]) <= 1e-3 * abs(plain[-1][key]), (key, measured, plain[-1])
    run(shard, mine, curvature="gnb")
    dist.destroy_process_group()
    print("agreed")
"""


@pytest.mark.slow
def test_ddp_and_fsdp2_agree_with_one_process(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(_TWO)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "cwd": Path(__file__).parents[1]}
    both = [subprocess.Popen([*command, str(rank), str(tmp_path / "store")], **pipes) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=900)[0] for process in both]
    finally:
        for process in both:
            process.kill()
    assert all("agreed" in output for output in outputs), "\n".join(outputs)
