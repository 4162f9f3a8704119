"""The recipes: one plain loop, and the callbacks, which must do what the plain loop does."""

import contextlib
import gc
import importlib
import shutil

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


def _measured(model, kind, at):
    return LotionPenalty(model, FORMAT, curvature=kind, curvature_at=at, curvature_every=2, ramp=(0, 2))


def _plainly_measured(kind, at):
    """:func:`_plain` of two micro-batches, the curvature being measured on the last one of every second step."""
    model = mlp()
    penalty = _measured(model, kind, at)
    if kind == "kfac":
        penalty.watch(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in zip(X.chunk(3), Y.chunk(3), strict=True):
        for part_x, part_y in zip(x.chunk(2), y.chunk(2), strict=True):
            loss = nn.functional.cross_entropy(model(part_x), part_y)
            (loss / 2).backward()
        penalty.measure(lambda: nn.functional.cross_entropy(model(part_x), part_y), 4)  # noqa: B023
        penalty.add_gradient_()
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step(), optimizer.zero_grad(), penalty.step()
    return model


MEASURED = [("fisher", "rounded"), ("fisher", "mixture"), ("kfac", "mixture"), ("hutchinson", "weight")]


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


def test_hooks_clip_the_penalty_along_with_the_gradient():
    # Clipped before, the sum would be longer than max_norm by the penalty's gradient.
    model, max_norm = mlp(), 1e-3
    penalty = LotionPenalty(model, FORMAT, curvature="fisher", weight=100.0)
    hooks = recipes.Hooks(penalty, batch_size=24, max_norm=max_norm)
    nn.functional.cross_entropy(model(X), Y).backward()
    alone = [p.grad.clone() for p in model.parameters()]
    hooks.before_step(torch.optim.SGD(model.parameters(), lr=0.1), model.parameters())
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    # clip_grad_norm_ divides by the norm plus 1e-6, so that this is what comes out but for rounding errors.
    assert float(norm) == pytest.approx(max_norm, rel=1e-5)
    directions = [
        torch.cat([g.flatten() for g in gradients]) for gradients in (alone, [p.grad for p in model.parameters()])
    ]
    assert float(torch.nn.functional.cosine_similarity(*directions, dim=0)) < 0.99


def test_hooks_do_not_count_steps_that_are_left_out():
    model = mlp()
    hooks = recipes.Hooks(*_trainers(model, "both"), batch_size=24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for stepped, steps in ((False, 0), (True, 1), (True, 2)):
        hooks.begin()
        nn.functional.cross_entropy(model(X), Y).backward()
        hooks.before_step(optimizer, model.parameters())
        optimizer.zero_grad()
        hooks.after_step(stepped)
        assert int(hooks.penalty.count) == int(hooks.straight_through.count) == steps


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


def _hugging_face(kind, folder, weight=1.0):
    """A trainer for the three steps of :func:`_plain`, and its model."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = Labelled()
    penalty, st = _trainers(model.net, kind)
    if penalty is not None:
        penalty.weight = weight
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


@pytest.fixture(scope="module", autouse=True)
def kept_modules():
    """accelerate looks for garbage at the start and the end of every training: not among the modules that stay."""
    for name in ("transformers.trainer", "lightning.pytorch"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()


@pytest.fixture(scope="module")
def hugging_face_run(tmp_path_factory):
    """The folder with the checkpoints of a run with the penalty, to be read only, and the model that came of it."""
    folder = tmp_path_factory.mktemp("run")
    trainer, model = _hugging_face("lotion", folder)
    trainer.train()
    return folder, model


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


@pytest.mark.parametrize(("kind", "at"), MEASURED)
def test_hugging_face_measures_the_curvature_where_it_is_told(kind, at, tmp_path):
    trainer, model = _hugging_face("none", tmp_path)
    penalty = _measured(model, kind, at)
    trainer.add_callback(trainer_callback(penalty, batch_size=8, max_norm=0.1))
    trainer.train()
    assert_same(model, _plainly_measured(kind, at))
    assert int(penalty.count) == 3 and not model[0]._forward_hooks


def test_hooks_without_a_closure_say_so():
    penalty = _measured(mlp(), "gnb", "rounded")
    with pytest.raises(RuntimeError, match="curvature_at = 'rounded': set closure"):
        recipes.Hooks(penalty).before_step(torch.optim.SGD(penalty.every, lr=0.1), penalty.every)


@pytest.mark.parametrize("folder", ["moved", "old"])
def test_hugging_face_reads_the_state_of_the_checkpoint_it_resumes_from(folder, hugging_face_run, tmp_path):
    first, model = hugging_face_run
    source = shutil.copytree(first / "checkpoint-2", tmp_path / "best")
    if folder == "old":
        # The output folder has a checkpoint of another run at that step.
        other, _ = _hugging_face("lotion", tmp_path / "second", weight=3.0)
        other.train()
    again, resumed = _hugging_face("lotion", tmp_path / "second")
    again.train(resume_from_checkpoint=str(source))
    assert_same(resumed, model)
    shutil.copy(first / "checkpoint-1" / "lotion.pt", source / "lotion.pt")
    with pytest.raises(ValueError, match=r"resumes at step 2, but .*lotion\.pt is the state of another step"):
        _hugging_face("lotion", tmp_path / "third")[0].train(resume_from_checkpoint=str(source))


@pytest.mark.parametrize("kind", ["lotion", "qat"])
def test_hugging_face_follows_a_model_that_the_trainer_makes(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    given, _ = _hugging_face("none", tmp_path)
    made_first = Labelled()
    penalty, st = _trainers(made_first, kind)
    trainer = transformers.Trainer(
        None, given.args, train_dataset=given.train_dataset, model_init=Labelled,
        callbacks=[trainer_callback(penalty, st, batch_size=8, max_norm=0.1)],
    )  # fmt: skip
    trainer.train()
    part = penalty or st
    assert part.items[0].parameter is trainer.model.net[0].weight
    assert int(part.count) == 3
    assert_same(made_first, Labelled())
    # Names that the new model does not have.
    wrong = transformers.Trainer(
        None, given.args, train_dataset=given.train_dataset, model_init=Labelled,
        callbacks=[trainer_callback(*_trainers(mlp(), kind), batch_size=8)],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the model that is trained has no parameter 0\.weight"):
        wrong.train()


def test_hugging_face_saves_each_trial_in_its_folder(tmp_path):
    pytest.importorskip("optuna")
    transformers = pytest.importorskip("transformers")
    given, _ = _hugging_face("none", tmp_path)
    penalty, _ = _trainers(Labelled(), "lotion")
    search = transformers.Trainer(
        None, given.args, train_dataset=given.train_dataset, eval_dataset=given.train_dataset,
        model_init=Labelled, callbacks=[trainer_callback(penalty, batch_size=8)],
    )  # fmt: skip

    def space(trial):
        return {"learning_rate": trial.suggest_float("learning_rate", 1e-3, 1e-2)}

    search.hyperparameter_search(hp_space=space, n_trials=2, backend="optuna", direction="minimize")
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("lotion.pt"))
    assert found == [f"run-{run}/checkpoint-{step}/lotion.pt" for run in (0, 1) for step in (1, 2, 3)]
    assert int(penalty.count) == 3


@pytest.mark.parametrize("how", ["interrupted", "stopped"])
def test_hugging_face_saves_float_weights_of_a_step_that_is_not_finished(how, tmp_path):
    transformers = pytest.importorskip("transformers")

    class Stop(transformers.TrainerCallback):
        def on_substep_end(self, args, state, control, **_):
            if how == "interrupted":
                raise KeyboardInterrupt
            control.should_training_stop = True

    trainer, model = _hugging_face("qat", tmp_path)
    trainer.add_callback(Stop())
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert not torch.equal(model[0].weight, mlp()[0].weight)
    else:
        trainer.train()
        assert_same(model, mlp())
    trainer.save_model(str(tmp_path / "final"))
    saved = pytest.importorskip("safetensors.torch").load_file(tmp_path / "final" / "model.safetensors")
    assert all(torch.equal(saved[f"net.{name}"], p) for name, p in mlp().named_parameters())
    # Training again begins with the weights, not with what they were replaced by.
    trainer.callback_handler.callbacks = [c for c in trainer.callback_handler.callbacks if not isinstance(c, Stop)]
    trainer.train()
    assert_same(model, _plain("qat", 2, 0.1))


def test_hugging_face_refuses_what_would_spoil_the_curvature():
    transformers = pytest.importorskip("transformers")
    callback = trainer_callback(LotionPenalty(mlp(), FORMAT), batch_size=8)
    assert isinstance(callback, transformers.TrainerCallback)
    for settings, message in (({"fp16": True}, "use bf16"), ({"max_grad_norm": 1.0}, "max_grad_norm = 1.0")):
        arguments = type("Arguments", (), {"fp16": False, "max_grad_norm": 0.0, **settings})
        with pytest.raises(ValueError, match=message):
            callback.on_train_begin(arguments, None, None)


def _lightning_module(net=None):
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = mlp() if net is None else net

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def _lightning_trainer(folder, callbacks, **settings):
    lightning = pytest.importorskip("lightning.pytorch")
    return lightning.Trainer(
        **{"max_epochs": 1, "accelerator": "cpu", "accumulate_grad_batches": 2, "gradient_clip_val": 0.1, **settings},
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=callbacks,
    )  # fmt: skip


def _batches():
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=4)


@pytest.mark.parametrize("kind", ["lotion", "qat", "both"])
def test_lightning(kind, tmp_path):
    def fitted(epochs, checkpoint=None):
        module = _lightning_module()
        penalty, st = _trainers(module.net, kind)
        callbacks = [lightning_callback(penalty, st, batch_size=8)]
        trainer = _lightning_trainer(tmp_path, callbacks, max_epochs=epochs)
        trainer.fit(module, _batches(), ckpt_path=checkpoint)
        return trainer, module.net

    trainer, model = fitted(1)
    assert_same(model, _plain(kind, 2, 0.1))
    assert not torch.equal(model[0].weight, _plain("none", 2, 0.1)[0].weight)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    assert_same(fitted(2, tmp_path / "one.ckpt")[1], fitted(2)[1])


@pytest.mark.parametrize(("kind", "at"), MEASURED)
def test_lightning_measures_the_curvature_where_it_is_told(kind, at, tmp_path):
    module = _lightning_module()
    callback = lightning_callback(_measured(module.net, kind, at), batch_size=8)
    _lightning_trainer(tmp_path, [callback]).fit(module, _batches())
    assert_same(module.net, _plainly_measured(kind, at))
    assert "log" not in vars(module) and not module.net[0]._forward_hooks


@pytest.mark.parametrize("stop", [False, True])
def test_lightning_saves_float_weights_between_micro_batches(stop, tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")

    class Saving(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, index):
            if index == 0:
                self.held = pl_module.net[0].weight.detach().clone()
                trainer.save_checkpoint(tmp_path / "inside.ckpt")
                trainer.should_stop = stop

    module, saving = _lightning_module(), Saving()
    _, st = _trainers(module.net, "qat")
    _lightning_trainer(tmp_path, [lightning_callback(straight_through=st), saving]).fit(module, _batches())
    assert not torch.equal(saving.held, mlp()[0].weight)
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=False)["state_dict"]
    assert all(torch.equal(saved[f"net.{name}"], p) for name, p in mlp().named_parameters())
    assert_same(module.net, mlp() if stop else _plain("qat", 2, 0.1))


def test_lightning_does_not_count_steps_that_a_scaler_leaves_out(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.plugins import MixedPrecision

    class Overflow(lightning.Callback):
        def on_after_backward(self, trainer, pl_module):
            if trainer.global_step == 0 and not hasattr(self, "done"):
                self.done = True
                pl_module.net[0].bias.grad[0] = float("inf")

    module = _lightning_module()
    penalty, st = _trainers(module.net, "both")
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    callbacks = [Overflow(), lightning_callback(penalty, st, batch_size=4)]
    _lightning_trainer(tmp_path, callbacks, accumulate_grad_batches=1, plugins=[plugin]).fit(module, _batches())
    assert int(penalty.count) == int(st.count) == 5  # of six batches
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_lightning_refuses_manual_optimization_and_follows_modules(tmp_path):
    module = _lightning_module()
    penalty, _ = _trainers(_lightning_module(mlp(seed=4)), "lotion")
    callback = lightning_callback(penalty, batch_size=8)
    trainer = _lightning_trainer(tmp_path, [callback])
    trainer.fit(module, _batches())
    assert penalty.items[0].parameter is module.net[0].weight
    assert_same(module.net, _plain("lotion", 2, 0.1))
    # The state of a checkpoint comes after that.
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    module = _lightning_module()
    _lightning_trainer(tmp_path, [callback], max_epochs=2).fit(module, _batches(), ckpt_path=tmp_path / "one.ckpt")
    assert penalty.items[0].parameter is module.net[0].weight
    assert int(penalty.count) == 6
    module.automatic_optimization = False
    with pytest.raises(ValueError, match="manual optimization has no fixed order"):
        _lightning_trainer(tmp_path, [callback], gradient_clip_val=None, accumulate_grad_batches=1).fit(
            module, _batches()
        )
