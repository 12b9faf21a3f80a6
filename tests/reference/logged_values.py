"""Run many modules that log; print what became visible where, as JSON. `python logged_values.py PACKAGE`.

For each run: `events`, the changes of callback_metrics (c), logged_metrics (l), progress_bar_metrics (p) and of the
update counts of metric objects (m), as seen at the end of the named hook of the callback (C) or module (M); `rows`,
what a logger received; `results`, what was returned. `refused` says which error a wrong call ends in.
"""

import importlib
import json
import logging
import os
import sys
import tempfile
import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchmetrics import MaxMetric, MeanMetric, Metric, MetricCollection, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryPrecision, BinaryRecall

package = sys.argv[1]
pl: Any = importlib.import_module(package)
callbacks: Any = importlib.import_module(f"{package}.callbacks")
Logger: Any = importlib.import_module(f"{package}.loggers.logger").Logger
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)

HOOKS = [
    "on_fit_start", "on_train_start", "on_train_epoch_start", "on_train_batch_start", "on_before_zero_grad",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end",
    "on_train_end", "on_fit_end",
    *(f"on_{stage}_{moment}" for stage in ("validation", "test")
      for moment in ("start", "epoch_start", "batch_start", "batch_end", "epoch_end", "end")),
]  # fmt: skip
EPOCH_HOOKS = {"on_train_epoch_end", "on_validation_end", "on_test_end", "on_fit_end"}


# ---- recording
class Record:
    def __init__(self, watch):
        self.watch = watch
        self.events, self.rows, self.results = [], [], []
        self.last: dict[str, dict[str, Any]] = {"c": {}, "l": {}, "p": {}, "m": {}}

    def note(self, where, trainer):
        hook = where.split(".")[-1]
        if self.watch == "epochs" and hook not in EPOCH_HOOKS and where != "run":
            return
        if self.watch == "not sanity" and trainer.sanity_checking:
            return
        now = {
            "c": plain(trainer.callback_metrics),
            "l": plain(trainer.logged_metrics),
            "p": plain(trainer.progress_bar_metrics),
            "m": {
                name: child.update_count
                for name, child in trainer.lightning_module.named_children()
                if isinstance(child, Metric)
            },
        }
        changes = {}
        for kind, values in now.items():
            before = self.last[kind]
            changed = {k: v for k, v in values.items() if k not in before or not equal(before[k], v)}
            changed.update({k: "gone" for k in before if k not in values})
            if changed:
                changes[kind] = dict(sorted(changed.items()))
        self.last = now
        if changes:
            self.events.append([where, changes])


def equal(a, b):
    return a == b or (a != a and b != b)


def plain(metrics):
    return {name: plain_value(value) for name, value in metrics.items()}


def plain_value(value):
    if not isinstance(value, torch.Tensor):
        return value if type(value) is int else number(value)
    if value.shape != () or value.dtype != torch.float32:
        return f"{str(value.dtype)[6:]}{list(value.shape)} {number(value.item())}"
    return number(value.item())


def number(value):
    return str(value) if value != value or abs(value) == float("inf") else float(f"{value:.7g}")


class MemoryLogger(Logger):
    def __init__(self, record):
        super().__init__()
        self.record = record

    name = "memory"
    version = 0

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.record.rows.append([dict(sorted(plain(metrics).items())), step])


def make_hook(who, name):
    def hook(self, *args):
        action = self.plan.get(name)
        if action is not None:
            action(self, *args)
        trainer = args[0] if who == "C" else self.trainer
        self.record.note(f"{who}.{name}", trainer)

    hook.__name__ = name
    return hook


class Spy(callbacks.Callback):
    def __init__(self, record, plan):
        self.record, self.plan = record, plan


for name in [*HOOKS, "on_sanity_check_start", "on_sanity_check_end"]:
    setattr(Spy, name, make_hook("C", name))


class Model(pl.LightningModule):
    def __init__(self, record, plan, prepare=None, optimizers=None):
        super().__init__()
        self.record, self.plan, self.optimizers_of = record, plan, optimizers
        self.layer = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(self.layer.weight)
        if prepare is not None:
            prepare(self)

    def training_step(self, batch, batch_idx):
        action = self.plan.get("training_step")
        returned = None if action is None else action(self, batch, batch_idx)
        return returned if isinstance(returned, torch.Tensor) else self.layer(batch).mean() * 0.01

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        if "validation_step" in self.plan:
            self.plan["validation_step"](self, batch, batch_idx, dataloader_idx)

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        if "test_step" in self.plan:
            self.plan["test_step"](self, batch, batch_idx, dataloader_idx)

    def configure_optimizers(self):
        if self.optimizers_of is not None:
            return self.optimizers_of(self)
        return torch.optim.SGD(self.parameters(), lr=0.01)


for name in HOOKS:
    setattr(Model, name, make_hook("M", name))


def loader(n=10, batch_size=4, start=0.0):
    return DataLoader(torch.arange(n, dtype=torch.float32).view(n, 1) + start, batch_size=batch_size)


CASES: dict[str, Any] = {}


def run(
    name,
    plan,
    *,
    in_callback=None,
    prepare=None,
    optimizers=None,
    val=1,
    calls=("fit",),
    watch="all",
    model=Model,
    more_callbacks=(),
    train=None,
    **settings,
):
    record = Record(watch)
    settings = {"max_epochs": 2, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **settings}
    module = model(record, plan, prepare, optimizers)
    val_loaders: Any = [loader(6 + 4 * i, 4, 100.0 * i) for i in range(val)]
    val_loaders = val_loaders[0] if val == 1 else val_loaders or None
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        trainer = pl.Trainer(
            accelerator="cpu", devices=1, logger=MemoryLogger(record), enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=folder,
            callbacks=[*(make() for make in more_callbacks), Spy(record, in_callback or {})], **settings,
        )  # fmt: skip
        for call in calls:
            record.events.append([f"-- {call}", {}])
            if call == "fit":
                trainer.fit(module, train or loader(), val_loaders)
            else:
                record.results.append(
                    [
                        {k: number(v) for k, v in sorted(found.items())}
                        for found in getattr(trainer, call)(module, val_loaders, verbose=False)
                    ]
                )
            record.note("run", trainer)
        os.chdir("/")
    CASES[name] = {"events": record.events, "rows": record.rows, "results": record.results}


# ---- on_step, on_epoch and reductions
def combinations(self, batch, *_):
    self.log("default", batch.mean())
    self.log("step_only", batch.mean(), on_step=True, on_epoch=False)
    self.log("epoch_only", batch.mean(), on_step=False, on_epoch=True)
    self.log("forked", batch.mean(), on_step=True, on_epoch=True, prog_bar=True)
    self.log("sum", batch.sum(), on_step=False, on_epoch=True, reduce_fx="sum")
    self.log("min", batch.min(), on_epoch=True, reduce_fx="min")
    self.log("max", batch.max(), on_epoch=True, reduce_fx=torch.max)
    self.log("avg", batch.max(), on_epoch=True, reduce_fx="avg")
    self.log("weighted", batch.mean(), on_epoch=True, batch_size=3)
    self.log("bar_only", batch.mean(), logger=False, prog_bar=True)
    self.log("bar_epoch", batch.mean(), logger=False, prog_bar=True, on_step=False, on_epoch=True)
    self.log("hidden", batch.mean(), logger=False)


def nested(self, batch, *_):
    self.log("nested", batch["x"][0].mean(), on_epoch=True)
    self.log_dict({"a": batch["x"][0].min(), "b": 2}, on_step=False, on_epoch=True, prog_bar=True, reduce_fx="max")
    self.log("nothing", 5.0, on_epoch=True, batch_size=0 if self.trainer.global_step == 1 else None)
    return self.layer(batch["x"][0]).sum() * 0.01


def twice(self, batch, *_):
    self.log("twice", 1.0, on_epoch=True)
    self.log("twice", 3.0, on_epoch=True)
    self.log("summed", 1.0, on_epoch=True, reduce_fx="sum")
    self.log("summed", batch.mean(), on_epoch=True, reduce_fx="sum")


everywhere = {"training_step": combinations, "validation_step": combinations, "test_step": combinations}
for watch in ("all", "epochs"):
    run(f"combinations, {watch}", everywhere, watch=watch)
run("validate and test after fit", everywhere, calls=("fit", "validate", "test", "validate"), max_epochs=1)
run("sanity check", everywhere, num_sanity_val_steps=2, max_epochs=1)
run("every second step", everywhere, log_every_n_steps=2, watch="epochs")
run("no step rows", everywhere, log_every_n_steps=0, watch="epochs")
run("accumulating", everywhere, accumulate_grad_batches=2, log_every_n_steps=1)
run(
    "accumulating, every second",
    everywhere,
    accumulate_grad_batches=2,
    log_every_n_steps=2,
    max_epochs=3,
    watch="epochs",
)
run("cut by max_steps", everywhere, max_steps=4, max_epochs=-1)
run("fast_dev_run", everywhere, fast_dev_run=2)
run("validation in the epoch", everywhere, val_check_interval=1, max_epochs=1)
run("every second epoch", everywhere, check_val_every_n_epoch=2, watch="epochs")
run("without validation", everywhere, val=0)
run("no validation batches", everywhere, limit_val_batches=0)
run("twice in a hook", {"training_step": twice, "validation_step": twice}, calls=("fit", "test"))
nested_rows: Any = [{"x": [torch.tensor([float(i)]), i], "name": str(i)} for i in range(10)]
run("nested batches", {"training_step": nested}, train=DataLoader(nested_rows, batch_size=4))
run("fit twice", {"training_step": twice, "validation_step": twice}, calls=("fit", "fit"), max_epochs=1)
run("overfitting", everywhere, overfit_batches=2, watch="epochs")


# ---- many hooks
def logs(suffix="", **options):
    return lambda self, *_: self.log(f"v{suffix}", self.record_value(), **options)


class Counting(Model):
    calls = 0.0

    def record_value(self):
        self.calls += 1.0
        return self.calls


TRAIN_HOOKS = [
    "on_train_start", "on_train_epoch_start", "on_train_batch_start", "training_step", "on_before_zero_grad",
    "on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end", "on_train_epoch_end",
]  # fmt: skip
EVAL_HOOKS = [
    "on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "validation_step",
    "on_validation_batch_end", "on_validation_epoch_end",
]  # fmt: skip
TEST_HOOKS = [name.replace("validation", "test") for name in EVAL_HOOKS]
LOG_HOOKS = [*TRAIN_HOOKS, *EVAL_HOOKS, *TEST_HOOKS]
run("same name in every hook", {name: logs() for name in LOG_HOOKS}, model=Counting, calls=("fit", "validate", "test"))
run("own name in every hook", {name: logs(f".{name}") for name in LOG_HOOKS}, model=Counting, calls=("fit", "test"))
for watch in ("not sanity", "epochs"):
    run(
        f"own name in every hook, two loaders, {watch}",
        {name: logs(f".{name}") for name in LOG_HOOKS},
        model=Counting,
        val=2,
        calls=("fit", "validate"),
        max_epochs=1,
        num_sanity_val_steps=int(watch == "not sanity"),
        watch=watch,
    )
run(
    "same name in every hook, epochs",
    {name: logs() for name in LOG_HOOKS},
    model=Counting,
    watch="epochs",
    calls=("fit", "validate", "test"),
)
run(
    "own name in every hook, epochs",
    {name: logs(f".{name}") for name in LOG_HOOKS},
    model=Counting,
    watch="epochs",
    calls=("fit", "test"),
)
run(
    "on_epoch in every hook",
    {name: logs(f".{name}", on_epoch=True) for name in LOG_HOOKS},
    model=Counting,
    calls=("fit", "test"),
    watch="epochs",
)
run(
    "three hooks, forked",
    {n: logs(on_epoch=True) for n in ("on_train_batch_start", "training_step", "on_train_batch_end")},
    model=Counting,
)


def in_callback(self, trainer, module, *_):
    self.log("by_self", float(trainer.global_step))
    module.log("by_module", float(trainer.global_step) + 0.5, prog_bar=True)
    self.log_dict({"one": 1.0, "two": torch.tensor(2.0)})


run("callbacks", {}, in_callback={name: in_callback for name in HOOKS if name in LOG_HOOKS})
run(
    "callbacks, epochs",
    {},
    in_callback={name: in_callback for name in HOOKS if name in LOG_HOOKS},
    watch="epochs",
    calls=("fit", "validate", "test"),
)


# ---- several loaders
def both_loaders(self, batch, batch_idx, dataloader_idx):
    self.log("mean", batch.mean())
    self.log("forked", batch.mean(), on_step=True, on_epoch=True, prog_bar=True)
    self.log(f"own_{dataloader_idx}", batch.mean(), add_dataloader_idx=False)
    self.log(f"own_forked_{dataloader_idx}", batch.mean(), add_dataloader_idx=False, on_step=True, on_epoch=True)
    if dataloader_idx == 1:
        self.log("second", batch.sum(), reduce_fx="sum", prog_bar=True)
    self.log("hidden", batch.mean(), logger=False)


run(
    "two loaders",
    {"validation_step": both_loaders, "test_step": both_loaders},
    val=2,
    calls=("fit", "validate", "test"),
)
run(
    "two loaders, epochs",
    {"validation_step": both_loaders},
    val=2,
    calls=("fit", "validate"),
    watch="epochs",
    num_sanity_val_steps=0,
)
run(
    "two loaders, sanity check",
    {"validation_step": both_loaders},
    val=2,
    watch="not sanity",
    num_sanity_val_steps=1,
    max_epochs=1,
)
run(
    "three loaders",
    {"validation_step": lambda self, b, i, d: self.log("m", b.mean(), on_step=True)},
    val=3,
    max_epochs=1,
)


# ---- special names
def special(self, batch, batch_idx, *_):
    self.log("step", float(self.trainer.global_step * 10 + 7))
    self.log("value", batch.mean())


def special_epoch(self, *_):
    self.log("step", float(self.current_epoch))
    self.log("value_at_end", 1.0)


def epoch_name(self, batch, *_):
    self.log("epoch", 0.25 + self.current_epoch)
    self.log("value", batch.mean(), on_epoch=True)


run("a metric named step", {"training_step": special, "validation_step": special})
run("a metric named step, by epoch", {"on_train_epoch_end": special_epoch, "validation_step": special}, watch="epochs")
run("a metric named epoch", {"training_step": epoch_name, "validation_step": epoch_name})


# ---- kinds of values
def kinds(self, batch, batch_idx, *_):
    self.log("int", batch_idx, on_epoch=True)
    self.log("bool", batch_idx % 2 == 0, on_epoch=True)
    self.log("float", 0.1 * batch_idx, on_epoch=True)
    self.log("int64", torch.tensor(batch_idx), on_epoch=True)
    self.log("bool_tensor", torch.tensor(batch_idx % 2 == 0), on_epoch=True)
    self.log("float64", batch.double().mean() / 3, on_epoch=True)
    self.log("float16", batch.half().mean(), on_epoch=True)
    self.log("bfloat16", batch.bfloat16().mean(), on_epoch=True)
    self.log("one_element", batch.mean().view(1, 1), on_epoch=True)
    self.log("int_sum", torch.tensor(batch_idx), on_epoch=True, reduce_fx="sum")
    self.log("int_max", torch.tensor(batch_idx), on_epoch=True, reduce_fx="max")
    self.log("nan", float("nan") if batch_idx == 1 else 1.0, on_epoch=True)
    self.log("nan_min", torch.tensor(float("nan") if batch_idx == 1 else 1.0), on_epoch=True, reduce_fx="min")
    self.log("inf", float("inf"), on_epoch=True)
    self.log("graph", self.layer(batch).mean(), enable_graph=True, on_step=False, on_epoch=True)


run("kinds of values", {"training_step": kinds, "validation_step": kinds}, max_epochs=1)


# ---- torchmetrics
def add_metrics(self):
    self.updated, self.forwarded, self.total, self.peak = MeanMetric(), MeanMetric(), SumMetric(), MaxMetric()
    self.step_only, self.val_mean = SumMetric(), MeanMetric()


def metric_step(self, batch, *_):
    self.updated.update(batch)
    self.forwarded(batch)
    self.total(batch)
    self.peak(batch)
    self.step_only(batch)
    self.log("updated", self.updated, on_step=False, on_epoch=True)
    self.log("forwarded", self.forwarded, on_step=True, on_epoch=True, prog_bar=True)
    self.log("total", self.total, on_epoch=True, on_step=False)
    self.log("peak", self.peak, on_epoch=True)
    self.log("step_only", self.step_only)


def metric_validation(self, batch, *_):
    self.val_mean(batch)
    self.log("val_mean", self.val_mean)


def metric_at_end(self, *_):
    self.log("at_end", self.at_end)
    self.at_end.update(5.0)


def add_at_end(self):
    self.at_end = SumMetric()


def update_at_end(self, batch, *_):
    self.at_end.update(batch)


def computed_at_end(self, *_):
    self.log("computed", self.at_end.compute())
    self.at_end.reset()


run(
    "metric objects",
    {"training_step": metric_step, "validation_step": metric_validation},
    prepare=add_metrics,
    num_sanity_val_steps=1,
    calls=("fit", "validate"),
)
run(
    "metric objects, epochs",
    {"training_step": metric_step, "validation_step": metric_validation},
    prepare=add_metrics,
    num_sanity_val_steps=1,
    watch="epochs",
    log_every_n_steps=2,
)
run("metric at the end", {"training_step": update_at_end, "on_train_epoch_end": metric_at_end}, prepare=add_at_end)
run(
    "metric computed at the end",
    {"training_step": update_at_end, "on_train_epoch_end": computed_at_end},
    prepare=add_at_end,
)
run(
    "metric with two loaders",
    {"validation_step": lambda self, b, i, d: (self.means[d](b), self.log("m", self.means[d]))},
    val=2,
    prepare=lambda self: setattr(self, "means", torch.nn.ModuleList([MeanMetric(), MeanMetric()])),
    calls=("fit", "validate"),
)


def collection(self):
    self.scores = MetricCollection([BinaryPrecision(), BinaryRecall(), BinaryAccuracy()], prefix="train/")
    self.val_scores = self.scores.clone(prefix="val/")


def score(self, batch, *_):
    values = self.scores((batch * 0.37) % 1.0, (batch.long() % 3 == 0).int())
    self.log_dict(values, prog_bar=True)


def score_collection(self, batch, *_):
    self.scores((batch * 0.37) % 1.0, (batch.long() % 3 == 0).int())
    self.log_dict(self.scores, on_step=True, on_epoch=True)


def score_validation(self, batch, *_):
    self.val_scores.update((batch * 0.37) % 1.0, (batch.long() % 3 == 0).int())
    self.log_dict(self.val_scores)


run(
    "collection",
    {"training_step": score_collection, "validation_step": score_validation},
    prepare=collection,
    num_sanity_val_steps=1,
    calls=("fit", "validate"),
    max_epochs=2,
)
run(
    "collection, epochs",
    {"training_step": score_collection, "validation_step": score_validation},
    prepare=collection,
    watch="epochs",
    max_epochs=3,
)
run("values of a collection", {"training_step": score, "validation_step": score_validation}, prepare=collection)


# ---- schedulers, callbacks with their own rows, manual optimization
def plateau(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "value"}}


def plateau_by_step(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    config = {"scheduler": scheduler, "monitor": "value", "interval": "step", "strict": False}
    return {"optimizer": optimizer, "lr_scheduler": config}


def falling(self, batch, *_):
    self.log("value", 1.0 if self.trainer.training else 2.0 - self.current_epoch)


def step_scheduler(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.5, momentum=0.25)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def epoch_scheduler(self):
    optimizer = torch.optim.SGD(self.parameters(), lr=0.5)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]


def logs_lr(self, *_):
    self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])


def same_value(self, batch, *_):
    self.log("value", 1.0)


run("plateau", {"validation_step": same_value, "on_train_epoch_start": logs_lr}, optimizers=plateau, max_epochs=4)
run(
    "plateau by step",
    {"validation_step": falling, "training_step": falling, "on_train_epoch_start": logs_lr},
    optimizers=plateau_by_step,
    max_epochs=4,
)
run(
    "plateau by step, in the epoch",
    {"validation_step": falling, "training_step": falling, "on_train_batch_start": logs_lr},
    optimizers=plateau_by_step,
    max_epochs=2,
    val_check_interval=2,
)
run(
    "lr by step",
    {"training_step": same_value},
    optimizers=step_scheduler,
    log_every_n_steps=2,
    more_callbacks=[lambda: callbacks.LearningRateMonitor(log_momentum=True)],
)
run(
    "lr by epoch",
    {"training_step": same_value},
    optimizers=epoch_scheduler,
    more_callbacks=[lambda: callbacks.LearningRateMonitor()],
)
run(
    "early stopping",
    {"validation_step": same_value, "training_step": combinations},
    max_epochs=5,
    watch="epochs",
    log_every_n_steps=50,
    more_callbacks=[lambda: callbacks.EarlyStopping("value", patience=0)],
)


class Manual(Model):
    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = self.layer(batch).mean() * 0.01
        self.manual_backward(loss)
        self.log("before", batch.mean(), on_epoch=True)
        optimizer.step()
        self.log("after", batch.sum(), reduce_fx="sum", on_epoch=True, prog_bar=True)
        if batch_idx == 1:
            optimizer.step()


run("manual", {}, model=Manual)
run(
    "manual, hooks log between",
    {name: logs(f".{name}") for name in ("on_before_backward", "on_before_optimizer_step")},
    model=type("ManualCounting", (Manual, Counting), {}),
)


class OwnStep(Model):
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None):
        self.log("own_step", float(batch_idx))
        optimizer.step(closure=optimizer_closure)

    def optimizer_zero_grad(self, epoch, batch_idx, optimizer):
        self.log("own_zero", float(batch_idx))
        optimizer.zero_grad()

    def backward(self, loss):
        self.log("own_backward", 1.0, on_epoch=True)
        loss.backward()

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.log("own_clipping", 1.0, on_epoch=True, reduce_fx="sum")
        self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)


run("own steps", {"training_step": combinations}, model=OwnStep, max_epochs=1, gradient_clip_val=1.0)
run(
    "not every batch",
    {
        "training_step": lambda self, b, i: self.log("odd", b.mean(), on_epoch=True) if i % 2 else None,
        "validation_step": lambda self, b, i, d: self.log("v", b.mean()) if self.current_epoch else None,
    },
)
run(
    "empty epochs",
    {
        "training_step": lambda self, b, i: (
            self.log("first", b.mean(), on_epoch=True) if self.current_epoch == 0 else None
        )
    },
    max_epochs=3,
)
run("skipped epoch", {"training_step": combinations}, train=loader(16, 4), limit_train_batches=2)


def stop_early(self, batch, batch_idx):
    self.log("m", batch.mean(), on_epoch=True)
    if self.current_epoch == 1 and batch_idx == 1:
        self.trainer.should_stop = True


run("should_stop", {"training_step": stop_early, "validation_step": same_value}, max_epochs=4, log_every_n_steps=50)

# ---- what is refused
REFUSED: dict[str, str] = {}


def refused(name, hook, action, **settings):
    try:
        run(
            "refused",
            {hook: action},
            prepare=add_metrics,
            max_epochs=1,
            calls=settings.pop("calls", ("fit",)),
            **settings,
        )
    except Exception as error:
        REFUSED[name] = type(error).__name__
    else:
        REFUSED[name] = "accepted"
    CASES.pop("refused", None)


def tries(value, name="x", **options):
    return lambda self, *_: self.log(name, value, **options)


for hook in ("on_fit_start", "on_fit_end", "on_train_end", "on_validation_end"):
    refused(f"in {hook}", hook, tries(1.0))
for hook in (
    "on_train_start",
    "on_train_epoch_start",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_end",
):
    refused(f"on_step in {hook}", hook, tries(1.0, on_step=True))
    refused(f"on_step only in {hook}", hook, tries(1.0, on_step=True, on_epoch=False))
    refused(f"neither in {hook}", hook, tries(1.0, on_epoch=False))
for label, value in {
    "list": [1.0],
    "tuple": (1.0,),
    "dict": {"a": 1.0},
    "str": "1.0",
    "None": None,
    "two elements": torch.ones(2),
    "empty tensor": torch.ones(0),
    "nested dict": {"a": {"b": 1.0}},
    "complex": 1j,
    "class": object(),
    "set": {1.0},
    "bytes": b"1",
    "complex tensor": torch.tensor(1j),
}.items():
    refused(f"value {label}", "training_step", tries(value))
    refused(f"value {label} in log_dict", "training_step", lambda self, *_, value=value: self.log_dict({"x": value}))
OPTIONS: dict[str, dict[str, Any]] = {
    "neither": {"on_step": False, "on_epoch": False},
    "median": {"reduce_fx": "median", "on_epoch": True},
    "torch.std": {"reduce_fx": torch.std, "on_epoch": True},
    "lambda": {"reduce_fx": lambda x: x.mean(), "on_epoch": True},
    "builtin max": {"reduce_fx": max, "on_epoch": True},
    "MEAN": {"reduce_fx": "MEAN", "on_epoch": True},
    "torch.mean": {"reduce_fx": torch.mean},
    "builtin sum": {"reduce_fx": sum},
    "std on_step": {"reduce_fx": torch.std},
    "batch_size 0": {"batch_size": 0, "on_epoch": True},
    "float batch_size": {"batch_size": 2.5, "on_epoch": True},
}
for label, options in OPTIONS.items():
    refused(f"options {label}", "training_step", tries(1.0, **options))
refused("name with loader mark", "training_step", tries(1.0, "a/dataloader_idx_0"))
refused("name is no text", "training_step", tries(1.0, 5))
refused("name is empty", "training_step", tries(1.0, ""))


words: Any = DataLoader(range(2), collate_fn=lambda rows: "text")  # type: ignore[arg-type]  # indexed, which is enough


class Wordy(Model):
    def training_step(self, batch, batch_idx):
        self.plan["training_step"](self, batch, batch_idx)
        return self.layer(torch.ones(1, 1)).sum()


def differently(self, *_):
    self.log("x", 1.0)
    self.log("x", 1.0, prog_bar=True)


def resized(self, *_):
    self.log("x", 1.0, on_epoch=True, batch_size=2)
    self.log("x", 1.0, on_epoch=True, batch_size=3)


def by_loader(self, b, i, d):
    self.log("x", float(d), add_dataloader_idx=False)


refused("different options", "training_step", differently)
refused("different batch sizes", "training_step", resized)
refused("same key for two loaders", "validation_step", by_loader, val=2)
refused("metric that is no attribute", "training_step", lambda self, *_: self.log("x", MeanMetric().to("cpu")))
refused(
    "metric with wrong attribute", "training_step", lambda self, *_: self.log("x", self.total, metric_attribute="peak")
)
refused(
    "metric with missing attribute", "training_step", lambda self, *_: self.log("x", self.total, metric_attribute="no")
)
refused(
    "metric by attribute",
    "training_step",
    lambda self, *_: (self.total(1.0), self.log("x", self.total, metric_attribute="total")),
)
refused("log_dict of a list", "training_step", lambda self, *_: self.log_dict([1.0]))
refused("collection in log", "training_step", lambda self, *_: self.log("x", MetricCollection([SumMetric()])))
refused(
    "no tensor in the batch",
    "training_step",
    tries(1.0, on_epoch=True),
    train=words,
    model=Wordy,
)
refused(
    "no tensor in the batch, by step",
    "training_step",
    tries(1.0),
    train=words,
    model=Wordy,
)
refused(
    "no tensor in the batch, explicit",
    "training_step",
    tries(1.0, on_epoch=True, batch_size=2),
    train=words,
    model=Wordy,
)
refused(
    "no tensor in the batch, sum",
    "training_step",
    tries(1.0, on_epoch=True, reduce_fx="sum"),
    train=words,
    model=Wordy,
)


print(json.dumps({"cases": CASES, "refused": REFUSED}, separators=(",", ":")))  # noqa: T201 - what it is for
