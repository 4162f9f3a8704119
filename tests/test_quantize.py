"""Whole models on lattices: what comes out is what each scheme gives each layer, stored exactly, and goes on after a kill."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

import lotion_theory as lt  # noqa: E402
from lotion_theory.export import decode, encode, load_packed, save_packed  # noqa: E402
from lotion_theory.files import lock  # noqa: E402
from lotion_theory.quantize import correct_biases, quantize, recalibrate_norms  # noqa: E402
from lotion_theory.rounders import Case, Grid, rounder  # noqa: E402

FORMATS = [
    "int4/absmax/row",
    "int3/absmax/block=4",
    "e2m1/absmax/row",
    "q8_0/row",
    "int4/asymmetric/row",
    "nvfp4/block=4",
]


class Net(nn.Module):
    """A convolution, a norm and two matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.one, self.two = nn.Linear(16, 8), nn.Linear(8, 3)
        self.eval()

    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        x = nn.functional.avg_pool2d(x, 2).flatten(1)
        return self.two(torch.relu(self.one(x)))


def _batches(count: int = 4, size: int = 16, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 2, 4, 4, generator=generator) for _ in range(count)]


def _mlp(width: int = 8) -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, 4))


def _vectors(count: int = 3, width: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    # Correlated inputs: only then do schemes differ.
    mix = torch.randn(width, width, generator=generator) + 2
    return [torch.randn(40, width, generator=generator) @ mix for _ in range(count)]


@pytest.mark.parametrize(
    "format", ["int4/absmax/row", "int4/absmax/channel", "e2m1/absmax/tensor", "int2/absmax/channel"]
)
def test_rtn_is_the_cast(format):
    model = Net()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = quantize(model, _batches(), format, "rtn", exclude=("conv*",) if "row" in format else ())
    for name, p in model.named_parameters():
        if name in found.stored:
            assert torch.equal(p, lt.Quantizer.parse(format).cast(before[name]))
            assert torch.equal(p, decode(found.stored[name]))
        else:
            assert torch.equal(p, before[name])
    assert all(row.error == row.rtn_error and row.scheme == "rtn" and not row.reason for row in found.rows)


@pytest.mark.parametrize("format", ["int4/absmax/row", "int3/absmax/block=4", "nf4/absmax/block=4", "q8_0"])
@pytest.mark.parametrize("scheme", ["gptq", "coordinate_descent", "lotion_splitting"])
def test_each_layer_is_the_scheme_on_its_own_moment(format, scheme):
    """The reference passes the model in float64 by hand, layer after layer, and rounds each with the moment it sees."""
    if format == "q8_0":
        format = "int8/fp16-nearest/block=4"
    model = _mlp()
    plain = copy.deepcopy(model)
    found = quantize(model, _vectors(), format, scheme)
    x = torch.cat(_vectors())
    for number, name in ((0, "0.weight"), (2, "2.weight")):
        w = plain[number].weight.detach()
        h = (x.double().T @ x.double() / len(x)).numpy()
        stored = found.stored[name]
        lattice = Case(h, w.double().numpy(), _grid(stored, w))
        nearest = lattice.loss(lattice.grid.nearest(lattice.weights)[None])[0]
        point = decode(stored).double().numpy()
        # Near the same choice in float64; float32 may decide ties of the objective otherwise, so losses are compared.
        reference = rounder(scheme)(lattice, lt.Stream(0, f"quantize/{name}"))
        losses = [lattice.loss(p[None])[0] for p in (point, reference)]
        assert losses[0] == pytest.approx(losses[1], rel=0.2) and losses[0] < nearest
        assert torch.equal(model[number].weight, decode(stored))
        row = next(row for row in found.rows if row.name == name)
        power = float(np.einsum("ri,ij,rj->", w.double().numpy(), h, w.double().numpy())) / 2
        assert row.error == pytest.approx(losses[0] / power, rel=1e-3)
        assert row.rtn_error == pytest.approx(nearest / power, rel=1e-3)
        if number == 0:
            x = torch.tanh(model[0](x)).detach()


def _grid(stored, w) -> Grid:
    q = stored.frozen
    step = np.array([[float(v)] for v in q.branches(w)[0].draw.lattice.top.double().reshape(-1)])
    step = step.repeat(w.numel() // len(step), 1).reshape(w.shape)
    levels = q.codebook.levels if "fp16" in stored.format else q.codebook.units
    return Grid(step, np.array([float(v) for v in levels]))


def test_float_inputs_are_those_of_the_float_model():
    model, other = _mlp(), _mlp()
    # So coarse that the second layer's inputs change a lot.
    sequential = quantize(model, _vectors(), "int2/absmax/tensor", "rtn")
    parallel = quantize(other, _vectors(), "int2/absmax/tensor", "rtn", inputs="float")
    x = torch.cat(_vectors())
    plain = _mlp()
    for found, first in ((sequential, model[0]), (parallel, plain[0])):
        seen = torch.tanh(first(x)).detach().double()
        torch.testing.assert_close(found.means["2.weight"][0], seen.mean(0), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_points_survive_a_packed_file(tmp_path):
    model = Net()
    found = quantize(model, _batches(), "int3/absmax/channel", "gptq")
    save_packed(tmp_path / "m.safetensors", found.stored | {"bias": model.two.bias.detach()}, "int3/absmax/channel")
    loaded = load_packed(tmp_path / "m.safetensors")
    for name in found.stored:
        assert torch.equal(torch.as_tensor(loaded[name]), model.get_parameter(name).detach())
    assert model.conv.weight.shape == (4, 2, 3, 3) and found.stored["conv.weight"].shape == (4, 2, 3, 3)


def test_two_runs_are_equal_and_drawing_follows_the_seed():
    def points(seed, scheme):
        model = Net()
        quantize(model, _batches(), "int3/absmax/channel", scheme, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(points(0, "lotion"), points(0, "lotion"))
    assert torch.equal(points(0, "rr"), points(0, "rr")) and not torch.equal(points(0, "rr"), points(1, "rr"))


def test_rows_in_batches_change_nothing():
    one, two = Net(), Net()
    quantize(one, _batches(), "int3/absmax/channel", "gptq")
    quantize(two, _batches(), "int3/absmax/channel", "gptq", rows=3)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_draws_differ_between_rows_and_groups_whatever_the_batches():
    """Equal rows of one scale get different draws; the chance that 40 draws agree by accident is below 2^-20."""

    def drawn(rows):
        torch.manual_seed(8)
        conv = nn.Conv1d(8, 8, 10, groups=2)
        with torch.no_grad():
            conv.weight[:] = torch.randn(1, 4, 10)
        quantize(conv, [torch.randn(2, 8, 40)], "int3/absmax/channel", "rr", rows=rows)
        return conv.weight.detach()

    w = drawn(4096)
    assert torch.equal(w, drawn(3)) and len({tuple(row.flatten().tolist()) for row in w}) == 8


@pytest.mark.parametrize("calibration", [torch.zeros(3, 8), {"x": torch.zeros(3, 8)}, "text"])
def test_one_batch_is_no_list_of_batches(calibration):
    with pytest.raises(ValueError, match="give a list of batches"):
        quantize(_mlp(), calibration, "int4", "rtn")


def test_narrow_weights_do_not_hold_points_of_stored_types():
    """The report is that of the points in the file, and a warning says that the model has others."""
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(32, 4, bias=False)).bfloat16()
    w, x = model[0].weight.detach().double(), torch.randn(100, 32).bfloat16()
    with pytest.warns(UserWarning, match=r"0\.weight \(torch\.bfloat16 for q4_0\)"):
        found = quantize(model, [x], "q4_0", "gptq")
    points = torch.from_numpy(found.stored["0.weight"].values())
    assert not torch.equal(points, model[0].weight.float()) and torch.equal(points.bfloat16(), model[0].weight)
    h, lost = x.double().T @ x.double(), points.double() - w
    error = torch.trace(lost @ h @ lost.T) / torch.trace(w @ h @ w.T)
    assert found.rows[0].error == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize(
    ("scale", "dtype", "format", "message"),
    [
        (1e300, torch.float64, "int4/absmax/row", "no float32"),
        (1e-300, torch.float64, "int4/absmax/row", "no float32"),
        (1e9, torch.float32, "q4_0", "exceed what the scales of q4_0"),
    ],
)
def test_magnitudes_that_do_not_fit_are_named(scale, dtype, format, message):
    model = nn.Sequential(nn.Linear(32, 4)).to(dtype)
    with torch.no_grad():
        model[0].weight.mul_(scale)
    with pytest.raises(ValueError, match=rf"0\.weight: .*{message}"):
        quantize(model, [torch.ones(40, 32, dtype=dtype)], format, "rtn")


class Killed(Exception):
    """What stops the work in tests."""


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    whole, folder = Net(), tmp_path / "work"
    found = quantize(whole, _batches(), "int3/absmax/channel", "gptq")

    def stop(done, total, text):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        quantize(Net(), _batches(), "int3/absmax/channel", "gptq", folder=folder, progress=stop)
    assert len(list(folder.glob("*.npz"))) == 2
    seen: list[str] = []
    model = Net()
    again = quantize(
        model, _batches(), "int3/absmax/channel", "gptq", folder=folder, progress=lambda *a: seen.append(a[2])
    )
    assert len(seen) == 3 and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), whole.parameters(), strict=True)
    )
    assert [r.error for r in again.rows] == [r.error for r in found.rows]
    assert {k: v.shape for k, v in again.means.items()} == {k: v.shape for k, v in found.means.items()}
    with pytest.raises(ValueError, match="begun with other scheme"):
        quantize(Net(), _batches(), "int3/absmax/channel", "rtn", folder=folder)
    with pytest.raises(ValueError, match="begun with other calibration"):
        quantize(Net(), _batches(seed=1), "int3/absmax/channel", "gptq", folder=folder)
    changed = Net()
    with torch.no_grad():
        changed.two.bias += 1
    with pytest.raises(ValueError, match="begun with other weights"):
        quantize(changed, _batches(), "int3/absmax/channel", "gptq", folder=folder)
    file = next(folder.glob("*.npz"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="delete it"):
        quantize(Net(), _batches(), "int3/absmax/channel", "gptq", folder=folder)
    with lock(folder / "lock", "someone else"), pytest.raises(BlockingIOError, match="is in use"):
        quantize(Net(), _batches(), "int3/absmax/channel", "gptq", folder=folder)
    (tmp_path / "early").mkdir()
    (tmp_path / "early" / ".plan.json.1-ab.part").write_text("{")  # killed while it wrote its plan
    quantize(Net(), _batches(), "int3/absmax/channel", "rtn", folder=tmp_path / "early")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "note").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        quantize(Net(), _batches(), "int4/absmax/channel", "rtn", folder=tmp_path / "other")
    assert [file.name for file in (tmp_path / "other").iterdir()] == ["note"]


def test_a_refusal_is_an_error_unless_something_else_was_asked_for():
    batches = [torch.cat([x[:, :4], x[:, :4]], 1) for x in _vectors()]  # a singular moment
    with pytest.raises(ValueError, match=r"0\.weight: damping=0"):
        quantize(_mlp(), batches, "int4/absmax/row", "gptq", settings={"damping": 0.0})
    found = quantize(_mlp(), batches, "int4/absmax/row", "gptq", settings={"damping": 0.0}, fall_back="rtn")
    assert [row.scheme for row in found.rows] == ["rtn", "gptq"] and "damping" in found.rows[0].reason


def test_what_calibration_does_not_see_is_said():
    batches = [x * torch.tensor([1.0, 1, 0, 1, 1, 1, 1, 1]) for x in _vectors()]
    found = quantize(_mlp(), batches, "int4/absmax/row", "gptq")
    assert found.rows[0].dead == 1 and found.rows[1].dead == 0
    with pytest.warns(UserWarning, match=r"fewer calibration vectors than inputs: 0\.weight \(3 for 8\)"):
        quantize(_mlp(), [_vectors()[0][:3]], "int4/absmax/row", "gptq")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(_mlp(), _vectors(), "int4/absmax/row", "gptq")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(format="int4/absmax/block=5"), r"0\.weight: .*5"),
        (dict(format="int5x"), "int5x"),
        (dict(scheme="best"), "scheme = 'best'; valid: lotion, rtn"),
        (dict(settings={"order": "odd"}), "unknown order 'odd'"),
        (dict(settings={"colour": 1}), "no setting 'colour'"),
        (dict(inputs="both"), "inputs = 'both'"),
        (dict(scales="best"), "scales = 'best'"),
        (dict(calibration=[]), "calibration is empty"),
        (dict(rows=0), "rows = 0"),
        (dict(format="complex4"), "."),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_rounded(change, message):
    model = _mlp()
    before = copy.deepcopy(model.state_dict())
    arguments = {"calibration": _vectors(), "format": "int4/absmax/row", "scheme": "gptq"} | change
    with pytest.raises(ValueError, match=message):
        quantize(model, **arguments)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_weights_that_are_not_finite_are_named():
    model = _mlp()
    with torch.no_grad():
        model[2].weight[1, 1] = torch.inf
    with pytest.raises(ValueError, match=r"2\.weight: has NaN or infinite weights"):
        quantize(model, _vectors(), "int4/absmax/row", "rtn")


def test_biases_restore_the_mean_output():
    """After the correction the mean output of a layer is that of its float weights on the same inputs."""
    model, plain = _mlp(), _mlp()
    found = quantize(model, _vectors(), "int2/absmax/row", "rtn", keep_originals=True)
    x = torch.cat(_vectors()).double()
    lost = (plain[0].double()(x) - model[0].double()(x)).mean(0).abs().max()
    model.float()
    undo = correct_biases(found)
    gap = (plain[0](x) - copy.deepcopy(model[0]).double()(x)).mean(0).abs().max()
    assert float(lost) > 0.05 and float(gap) < 1e-5 * float(x.abs().mean())
    undo()
    assert all(torch.equal(model[k].bias, _mlp()[k].bias) for k in (0, 2))
    with pytest.raises(ValueError, match="keep_originals"):
        correct_biases(quantize(_mlp(), _vectors(), "int2/absmax/row", "rtn"))


def test_norms_are_measured_anew_and_back():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    undo = recalibrate_norms(model, _batches())
    out = model.conv(torch.cat(_batches())).detach().double()
    mean = torch.stack([model.conv(x).detach().double().mean((0, 2, 3)) for x in _batches()]).mean(0)
    torch.testing.assert_close(model.norm.running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mean, out.mean((0, 2, 3)))
    assert model.norm.momentum == 0.1 and not model.norm.training and model.norm.num_batches_tracked == 4
    undo()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    for batches, message in (([], "no batches"), ([torch.randn(1, 2, 3, 3)], None)):
        if message:
            with pytest.raises(ValueError, match=message):
                recalibrate_norms(model, batches)
    with pytest.raises(ValueError, match="no BatchNorm"):
        recalibrate_norms(_mlp(), _vectors())
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_hold_their_points(dtype):
    model = _mlp().to(dtype)
    found = quantize(model, [x.to(dtype) / 64 for x in _vectors()], "int4/absmax/row", "gptq")
    for name, stored in found.stored.items():
        assert torch.equal(model.get_parameter(name), decode(stored)) and decode(stored).dtype == dtype
        assert torch.equal(decode(encode(model.get_parameter(name).detach(), stored.frozen)), decode(stored))


@pytest.mark.parametrize("scheme", ["rtn", "gptq", "lotion"])
@pytest.mark.parametrize(
    "format", ["q4_0", "q4_1", "iq4_nl", "mxfp4", "uint4/zp-real/row", "uint4/zp-int/block=8", "nvfp4/block=16"]
)
def test_affine_and_stored_lattices(format, scheme):
    """Points are levels of the stored lattice exactly, and informed schemes have less output error than RTN."""
    model = nn.Sequential(nn.Linear(32, 12, bias=False))
    torch.manual_seed(5)
    w = torch.randn(12, 32)
    x = torch.randn(200, 32) @ (torch.eye(32) + torch.randn(32, 32) / 3)
    with torch.no_grad():
        model[0].weight.copy_(w)
    found = quantize(model, [x], format, scheme)
    (row,), stored = found.rows, found.stored["0.weight"]
    values = decode(stored) if hasattr(stored, "anchor") else torch.from_numpy(stored.values())
    assert torch.equal(model[0].weight, values)
    assert row.error == row.rtn_error if scheme == "rtn" else row.error < row.rtn_error
    assert row.bits == stored.bits_per_weight > 3.9


@pytest.mark.parametrize("format", ["int3/absmax/row", "nf4/absmax/block=8", "q4_k", "q2_k", "iq4_nl", "nvfp4"])
def test_searched_scales_have_less_weighted_error(format, tmp_path):
    torch.manual_seed(6)
    w, x = torch.randn(8, 256) ** 3, torch.randn(300, 256) * torch.linspace(0.1, 3, 256)
    h = (x**2).mean(0)

    def error(scales, folder=None):
        model = nn.Sequential(nn.Linear(256, 8, bias=False))
        with torch.no_grad():
            model[0].weight.copy_(w)
        quantize(model, [x], format, "rtn", scales=scales, folder=folder)
        return float((h * (model[0].weight.detach() - w) ** 2).sum()), model[0].weight

    assert error("error")[0] < error("own")[0]
    one, two = (error("error", tmp_path / "work")[1] for _ in range(2))
    assert torch.equal(one, two)


def test_searched_scales_are_the_best_of_those_tried():
    """By hand: of 60 shares of a row's largest weight the one whose cast has the least error, weighted by E x²."""
    torch.manual_seed(8)
    w, x = torch.randn(6, 64) ** 3, torch.randn(99, 64) * torch.linspace(0.1, 3, 64)
    model = nn.Sequential(nn.Linear(64, 6, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(w)
    quantize(model, [x], "int3/absmax/row", "rtn", scales="error")
    h, q = (x.double() ** 2).mean(0), lt.Quantizer.parse("int3/absmax/row")
    tops = [w.abs().amax(1, keepdim=True) * share for share in torch.linspace(1, 0.4, 60)]
    errors = torch.stack([(h * (q.with_top(top).cast(w) - w).double() ** 2).sum(1) for top in tops])
    found = (h * (model[0].weight.detach() - w).double() ** 2).sum(1)
    torch.testing.assert_close(found, errors.amin(0), rtol=1e-5, atol=0)


def test_grouped_convolutions_meet_their_own_inputs():
    """Each group is rounded with the moment of its own patches: a reference rounds the groups apart."""
    torch.manual_seed(7)
    conv = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    x = torch.randn(6, 4, 7, 7).cumsum(3)
    w = conv.weight.detach().clone()
    found = quantize(conv, [x], "int3/absmax/channel", "gptq")
    for g in range(2):
        patches = nn.functional.unfold(x[:, 2 * g : 2 * g + 2], 3).transpose(1, 2).reshape(-1, 18).double()
        case = Case.make(
            (patches.T @ patches / len(patches)).numpy(), w[3 * g : 3 * g + 3].reshape(3, 18).numpy(), "int3/absmax/row"
        )
        reference = rounder("gptq")(case, lt.Stream(0, "x"))
        point = conv.weight.detach()[3 * g : 3 * g + 3].reshape(3, 18).double().numpy()
        np.testing.assert_allclose(point, reference, rtol=1e-6, atol=1e-7)
    assert found.rows[0].vectors == 6 * 25


def test_tied_weights_and_embeddings_are_rounded_to_nearest():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.embed, self.mix, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, ids):
            return self.head(torch.tanh(self.mix(self.embed(ids))))

    model = Tied()
    w = model.embed.weight.detach().clone()
    found = quantize(model, [torch.arange(9)[None]], "int4/absmax/row", "gptq")
    assert {row.name: (row.scheme, bool(row.reason)) for row in found.rows} == {
        "embed.weight": ("rtn", True), "mix.weight": ("gptq", False),
    }  # fmt: skip
    assert torch.equal(model.head.weight, lt.Quantizer.parse("int4/absmax/row").cast(w))
    assert model.head.weight is model.embed.weight


def test_searching_schemes_and_misfits_are_refused():
    with pytest.raises(ValueError, match="chooses scales by itself"):
        quantize(_mlp(), _vectors(), "int4/absmax/row", "clip_search")
    with pytest.raises(ValueError, match=r"0\.weight: rows of 8 do not divide into blocks of 256"):
        quantize(_mlp(), _vectors(), "q4_k", "rtn")
    with pytest.raises(ValueError, match=r"conv\.weight: q4_0|conv\.weight"):
        quantize(Net(), _batches(), "iq4_nl", "rtn")
    empty = _mlp()
    empty[0].weight = nn.Parameter(torch.zeros(0, 8))
    with pytest.raises(ValueError, match=r"0\.weight: has no entries"):
        quantize(empty, _vectors(), "int4", "rtn")
    with pytest.raises(TypeError, match=r"0\.weight: gptq with {'damping': 'much'}"):
        quantize(_mlp(), _vectors(), "int4/absmax/row", "gptq", settings={"damping": "much"})
    with pytest.raises(ValueError, match="only absmax scales"):
        quantize(_mlp(), _vectors(), "uint4/zp-real/row", "rtn", scales="error")
