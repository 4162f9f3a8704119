"""The recipes: one plain loop, and the callbacks, which must do what the plain loop does."""

import pytest
import torch
from torch import nn

from lotion_theory.training import LotionPenalty, StraightThrough, lightning_callback, recipes, trainer_callback
from tests.test_import import modules_after
from tests.torch_models import mlp

GENERATOR = torch.Generator().manual_seed(2)
X, Y = torch.randn(24, 8, generator=GENERATOR), torch.randint(0, 4, (24,), generator=GENERATOR)
FORMAT = "int4/absmax/row"


def _trainers(model, kind):
    lotion, qat = kind in ("lotion", "both"), kind in ("qat", "both")
    penalty = LotionPenalty(model, FORMAT, curvature="fisher", ramp=(0, 2)) if lotion else None
    st = StraightThrough(model, FORMAT, "qat") if qat else None
    return penalty, st


def _plain(kind, micro_batches, max_norm):
    """Three steps of SGD with eight samples each."""
    model = mlp()
    penalty, st = _trainers(model, kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in zip(X.chunk(3), Y.chunk(3), strict=True):
        if st is not None:
            st.__enter__()
        for part_x, part_y in zip(x.chunk(micro_batches), y.chunk(micro_batches), strict=True):
            (nn.functional.cross_entropy(model(part_x), part_y) / micro_batches).backward()
        if st is not None:
            st.__exit__(None)
        if penalty is not None:
            penalty.observe(batch_size=8)
            penalty.add_gradient_()
        if st is not None:
            st.before_step_()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()
        for part in (penalty, st):
            if part is not None:
                part.step()
    return model


@pytest.mark.parametrize("kind", ["lotion", "qat", "both"])
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_hooks_are_the_plain_loop(kind, max_norm):
    model = mlp()
    hooks = recipes.Hooks(*_trainers(model, kind), batch_size=8, max_norm=max_norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for number, (x, y) in enumerate(zip(X.chunk(6), Y.chunk(6), strict=True)):
        hooks.begin()  # before every micro-batch: it knows whether the weights are in
        (nn.functional.cross_entropy(model(x), y) / 2).backward()
        if number % 2:
            hooks.before_step(optimizer, model.parameters())
            optimizer.step()
            optimizer.zero_grad()
            hooks.after_step()
    for p, q in zip(model.parameters(), _plain(kind, 2, max_norm).parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_loop_that_stops_early_gets_its_weights_back():
    model = mlp()
    hooks = recipes.Hooks(straight_through=StraightThrough(model, FORMAT))
    hooks.begin()
    assert not torch.equal(model[0].weight, mlp()[0].weight)
    hooks.end()
    hooks.end()
    assert torch.equal(model[0].weight, mlp()[0].weight)


def test_hooks_for_curvature_from_adam_and_from_elsewhere():
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    penalty = LotionPenalty(model, FORMAT, curvature="adam", optimizer=optimizer, batch_size=24)
    hooks = recipes.Hooks(penalty)
    for _ in range(2):
        before = model[0].weight.detach().clone()
        nn.functional.cross_entropy(model(X), Y).backward()
        hooks.before_step(optimizer, model.parameters())
        moved = not torch.equal(before, model[0].weight)
        optimizer.step()
        hooks.after_step()
    assert moved  # beside the optimizer, once it has averages
    waiting = recipes.Hooks(LotionPenalty(model, FORMAT, curvature="gnb"))
    gradient = model[0].weight.grad.clone()
    waiting.before_step(optimizer, model.parameters())
    assert torch.equal(model[0].weight.grad, gradient)


def test_state_is_that_of_the_parts():
    hooks, other = (recipes.Hooks(*_trainers(mlp(), kind), batch_size=8) for kind in ("both", "qat"))
    assert set(hooks.state_dict()) == {"penalty", "straight_through"}
    with pytest.raises(ValueError, match="state of straight_through, expected penalty, straight_through"):
        hooks.load_state_dict(other.state_dict())


def test_hooks_check_what_they_need():
    with pytest.raises(ValueError, match="give penalty, straight_through, or both"):
        recipes.Hooks()
    with pytest.raises(ValueError, match="needs batch_size"):
        recipes.Hooks(LotionPenalty(mlp(), FORMAT))


def test_importing_the_package_imports_no_framework():
    loaded = modules_after("import lotion_theory.training")
    assert "torch" in loaded
    assert not loaded & {"transformers", "accelerate", "lightning", "pytorch_lightning", "testbeds"}


class Labelled(nn.Module):
    """A model as Hugging Face's Trainer takes it."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x, labels):
        logits = self.net(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def _hugging_face(kind, folder):
    """A trainer for the three steps of :func:`_plain`, and its model."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = Labelled()
    penalty, st = _trainers(model.net, kind)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_train_epochs=1,
        max_grad_norm=0.0, report_to=[], save_strategy="steps", save_steps=1, use_cpu=True, disable_tqdm=True,
        logging_strategy="no",
    )  # fmt: skip
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    callbacks = [] if kind == "none" else [trainer_callback(penalty, st, batch_size=8, max_norm=0.1)]
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, callbacks=callbacks,
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
    )  # fmt: skip
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(data)
    trainer.lr_scheduler = torch.optim.lr_scheduler.ConstantLR(trainer.optimizer, factor=1.0)
    return trainer, model.net


def assert_same(model, other):
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["lotion", "qat", "both"])
def test_hugging_face(kind, tmp_path):
    trainer, model = _hugging_face(kind, tmp_path)
    trainer.train()
    # The same operations in the same order.
    assert_same(model, _plain(kind, 2, 0.1))
    assert not torch.equal(model[0].weight, _plain("none", 2, 0.1)[0].weight)
    again, resumed = _hugging_face(kind, tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert_same(resumed, model)
    (tmp_path / "checkpoint-2" / "lotion.pt").unlink()
    with pytest.raises(ValueError, match=r"resumes at step 2, but .*checkpoint-2/lotion\.pt is missing"):
        _hugging_face(kind, tmp_path)[0].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_hugging_face_refuses_what_would_spoil_the_curvature():
    transformers = pytest.importorskip("transformers")
    callback = trainer_callback(LotionPenalty(mlp(), FORMAT), batch_size=8)
    assert isinstance(callback, transformers.TrainerCallback)
    for settings, message in (({"fp16": True}, "use bf16"), ({"max_grad_norm": 1.0}, "max_grad_norm = 1.0")):
        arguments = type("Arguments", (), {"fp16": False, "max_grad_norm": 0.0, **settings})
        with pytest.raises(ValueError, match=message):
            callback.on_train_begin(arguments, None, None)


@pytest.mark.parametrize("kind", ["lotion", "qat", "both"])
def test_lightning(kind, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def fitted(epochs, checkpoint=None):
        module = Module()
        penalty, st = _trainers(module.net, kind)
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", accumulate_grad_batches=2, gradient_clip_val=0.1,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=tmp_path, callbacks=[lightning_callback(penalty, st, batch_size=8)],
        )  # fmt: skip
        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)
        trainer.fit(module, data, ckpt_path=checkpoint)
        return trainer, module.net

    trainer, model = fitted(1)
    assert_same(model, _plain(kind, 2, 0.1))
    assert not torch.equal(model[0].weight, _plain("none", 2, 0.1)[0].weight)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert_same(fitted(2, tmp_path / "one.ckpt")[1], fitted(2)[1])
