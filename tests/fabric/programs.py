"""Small programs with Fabric; print what each returned, or how it failed, as JSON. `python programs.py PACKAGE`."""

import copy
import importlib
import json
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset, SequentialSampler

package = sys.argv[1]
L: Any = importlib.import_module(package)
Fabric: Any = L.Fabric
DataLoader: Any = torch.utils.data.DataLoader
is_wrapped: Any = importlib.import_module(f"{package}.fabric").is_wrapped
warnings.simplefilter("ignore")
logging.disable(logging.CRITICAL)
folder = Path(tempfile.mkdtemp())
PROGRAMS: dict[str, Any] = {}


def program(function):
    PROGRAMS[function.__name__.replace("_", " ")] = function
    return function


def refused(name, function):
    PROGRAMS[f"wrong: {name}"] = function


def made(**changes):
    return Fabric(**{"accelerator": "cpu", "devices": 1, **changes})


def pair(fabric, kind=torch.optim.SGD, **options):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return fabric.setup(model, kind(model.parameters(), lr=0.1, **options))


def rounded(tensor):
    return [round(value, 5) for value in tensor.detach().double().flatten().tolist()]


def trained(precision="32-true", kind=torch.optim.SGD, accumulate=1, clip=None, scheduled=False, closure=False):
    fabric = made(precision=precision)
    model, optimizer = pair(fabric, kind)
    batches = fabric.setup_dataloaders(DataLoader(torch.arange(36.0).reshape(12, 3) / 36, batch_size=2))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5) if scheduled else None
    losses = []

    def forward_backward(batch):
        loss = model(batch).pow(2).mean() / accumulate
        fabric.backward(loss)
        losses.append(round(loss.item(), 5))
        return loss

    for idx, batch in enumerate(batches):
        if closure:
            optimizer.zero_grad()
            optimizer.step(lambda batch=batch: forward_backward(batch))
            continue
        is_stepping = (idx + 1) % accumulate == 0
        with fabric.no_backward_sync(model, enabled=not is_stepping):
            forward_backward(batch)
        if not is_stepping:
            continue
        if clip:
            fabric.clip_gradients(model, optimizer, **clip)
        optimizer.step()
        optimizer.zero_grad()
        if scheduler:
            scheduler.step()
    return [losses, rounded(model.weight), round(optimizer.param_groups[0]["lr"], 6)]


for options in (
    {},
    {"kind": torch.optim.Adam},
    {"kind": torch.optim.AdamW, "accumulate": 3},
    {"accumulate": 2, "clip": {"max_norm": 0.1}},
    {"clip": {"clip_val": 0.01}},
    {"clip": {"max_norm": 0.1, "norm_type": 1}},
    {"scheduled": True},
    {"closure": True},
    {"precision": "bf16-mixed"},
    {"precision": "bf16-true"},
    {"precision": "64-true"},
    {"precision": "16-true"},
):
    title = ", ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in options.items())
    PROGRAMS[f"train {title}"] = lambda options=options: trained(**options)


class Methods(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.value = 3

    def forward(self, x):
        return self.layer(x)

    def training_step(self, x):
        return self.layer(x).sum()

    def generate(self, x):
        return self.layer(x)

    def count(self):
        return self.value

    @property
    def double(self):
        return self.value * 2


@program
def names_of_weights():
    model, optimizer = pair(made())
    return [list(model.state_dict()), list(model.state_dict(prefix="a.")), sorted(optimizer.state_dict())]


@program
def attributes_fall_through():
    original = Methods()
    model = made().setup(original)
    model.value = 5
    model.new = 1
    return [
        original.value,
        original.new,
        model.count(),
        model.value,
        model.module is original,
        isinstance(model, nn.Module),
    ]


@program
def modes():
    original = Methods()
    model = made().setup(original)
    return [model.eval().training, original.training, model.train().training, original.layer.training]


@program
def steps_and_marked_methods():
    model = made().setup(Methods())
    model.mark_forward_method("generate")
    x = torch.ones(1, 2)
    return [list(model(x).shape), list(model.training_step(x).shape), list(model.generate(x).shape)]


@program
def outputs_in_collections():
    class Dict(nn.Module):
        def forward(self, x, *, y):
            return {"x": x, "y": [y], "n": 3, "i": torch.ones(1, dtype=torch.int64)}

    out = made(precision="bf16-true").setup(Dict())(torch.ones(1), y=torch.ones(1).double())
    return [str(out["x"].dtype), str(out["y"][0].dtype), out["n"], str(out["i"].dtype)]


@program
def made_in_place():
    found = []
    for precision in ("32-true", "bf16-true", "64-true", "bf16-mixed"):
        fabric = made(precision=precision)
        with fabric.init_module():
            found.append(str(nn.Linear(1, 1).weight.dtype))
        with fabric.init_module(empty_init=True):
            found.append(str(nn.Linear(1, 1).weight.dtype))
        with fabric.init_tensor():
            found.append(str(torch.ones(1).dtype))
        with fabric.autocast():
            found.append(str((torch.ones(1, 1) @ torch.ones(1, 1)).dtype))
    return found


@program
def what_setup_returns():
    fabric = made()

    def names(result):
        return [type(item).__name__ for item in (result if isinstance(result, (list, tuple)) else [result])]

    def parts():
        model = nn.Linear(1, 1)
        return model, torch.optim.SGD(model.parameters(), lr=1.0)

    model, optimizer = parts()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    loader = DataLoader([1, 2])
    return [
        names(fabric.setup(*parts())),
        names(fabric.setup(model, optimizer, scheduler=scheduler)),
        names(fabric.setup(parts()[0], parts()[1], parts()[1])),
        names(fabric.setup(parts()[0])),
        names(fabric.setup_module(parts()[0])),
        names(fabric.setup_optimizers(parts()[1])),
        names(fabric.setup_optimizers(parts()[1], parts()[1])),
        names(fabric.setup_dataloaders(loader)),
        type(fabric.setup_dataloaders(loader, DataLoader([1]))).__name__,
    ]


@program
def what_is_wrapped():
    fabric = made()
    model, optimizer = pair(fabric)
    loader = fabric.setup_dataloaders(DataLoader([1]))
    things = (model, optimizer, loader, model.module, optimizer.optimizer, 3, torch.compile(model, backend="eager"))
    return [is_wrapped(thing) for thing in things]


@program
def copies():
    model, optimizer = pair(made())
    twin = copy.deepcopy(model)
    twin.weight.data.zero_()
    return [
        type(twin).__name__,
        rounded(twin(torch.ones(1, 3))),
        type(copy.deepcopy(optimizer)).__name__,
        rounded(model.weight),
    ]


@program
def optimizer_state_goes_both_ways():
    fabric = made()
    model, optimizer = pair(fabric, torch.optim.Adam)
    fabric.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    other = pair(fabric, torch.optim.Adam)[1]
    other.load_state_dict(optimizer.state_dict())
    other.param_groups[0]["lr"] = 0.5
    state = other.optimizer.state_dict()
    return [float(state["state"][0]["step"]), state["param_groups"][0]["lr"], isinstance(other, torch.optim.Adam)]


@program
def callbacks_are_called():
    class Callback:
        def __init__(self):
            self.seen = []
            self.number = 3

        def on_after_setup(self, fabric, module):
            self.seen.append(["setup", type(module).__name__])

        def on_after_optimizer_step(self, strategy, optimizer):
            self.seen.append(["step", type(strategy).__name__, type(optimizer).__name__])

        def hook(self, a, b=2):
            self.seen.append(["hook", a, b])

        def keywords(self, **kwargs):
            self.seen.append(["keywords", kwargs])

    callback = Callback()
    given = [callback]
    fabric = made(callbacks=given)
    model, optimizer = pair(fabric)
    fabric.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    fabric.call("hook", 1)
    fabric.call("hook", 1, b=3, c=4)
    fabric.call("keywords", c=4)
    fabric.call("unknown", 1)
    fabric.call("number")
    return [callback.seen, len(given)]


class Recorder:
    def __init__(self):
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append([dict(metrics), step])


@program
def values_are_logged():
    logger = Recorder()
    fabric = made(loggers=[logger, Recorder()])
    fabric.log("a", torch.tensor([[1.5]]))
    fabric.log("b", 2, step=3)
    fabric.log_dict({"c": torch.tensor(4), "d": 5.5}, step=1)
    return [logger.rows, fabric.logger is logger, len(fabric.loggers)]


@program
def launching():
    fabric = made()
    return [
        fabric.launch(),
        fabric.launch(lambda fabric, a: [type(fabric).__name__, a], 3),
        fabric.launch(lambda fabric, a=1: a, a=5),
        fabric.launch(lambda *args: len(args), 5),
    ]


@program
def running_a_subclass():
    class Mine(Fabric):
        def run(self, a, b=2):
            return [a, b, self.world_size]

    return Mine(accelerator="cpu", devices=1).run(1, b=3)


@program
def collectives_of_one_process():
    fabric = made()
    data = {"t": torch.ones(2), "i": 3, "f": 2.5, "s": "x"}
    reduced, gathered = fabric.all_reduce(data), fabric.all_gather(data)
    with fabric.rank_zero_first(), fabric.rank_zero_first(local=True):
        fabric.barrier("here")
    return [
        {
            key: [str(getattr(value, "dtype", "")), str(getattr(value, "tolist", lambda v=value: v)())]
            for key, value in found.items()
        }
        for found in (reduced, gathered)
    ] + [fabric.broadcast({"a": 1}), fabric.to_device({"a": 1}), fabric.to_device(nn.Linear(1, 1)).weight.device.type]


@program
def ranks():
    fabric = made()
    return [
        fabric.world_size,
        fabric.global_rank,
        fabric.local_rank,
        fabric.node_rank,
        fabric.is_global_zero,
        str(fabric.device),
    ]


@program
def epochs_of_samplers():
    class Sampler(SequentialSampler):
        def __init__(self, source):
            super().__init__(source)
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    sampler = Sampler([1, 2, 3])
    loader = made().setup_dataloaders(DataLoader([1, 2, 3], sampler=sampler))
    found = [[batch.tolist() for batch in loader] for _ in range(2)]
    return [found, sampler.epochs, len(loader), loader.batch_size]


@program
def saving_and_loading():
    fabric = made()
    model, optimizer = pair(fabric, torch.optim.Adam)
    fabric.backward(model(torch.ones(1, 3)).sum())
    optimizer.step()
    path = folder / "a.ckpt"
    fabric.save(path, {"model": model, "optimizer": optimizer, "step": 3, "config": {"a": 1}})
    found: list[Any] = [sorted(fabric.load(path)), sorted(torch.load(path)["model"])]
    other, stepped = pair(fabric, torch.optim.Adam)
    state = {"model": other, "optimizer": stepped, "step": 0}
    rest = fabric.load(path, state)
    found += [rest, state["step"], state["model"] is other, rounded(other.weight) == rounded(model.weight)]
    found += [sorted(fabric.load(path, {"nothing": 1}, strict=False))]
    return found


@program
def filtered_saving():
    fabric = made()
    path = folder / "b.ckpt"
    model = fabric.setup(nn.Linear(3, 2))
    fabric.save(
        path,
        {"model": model, "d": {"a": 1, "b": 2}},
        filter={"model": lambda k, v: k == "bias", "d": lambda k, v: v > 1},
    )
    saved = torch.load(path)
    return [list(saved["model"]), saved["d"]]


@program
def raw_loading():
    fabric = made()
    source = nn.Linear(3, 2)
    torch.save(source.state_dict(), folder / "raw.ckpt")
    model = fabric.setup(nn.Linear(3, 2))
    fabric.load_raw(folder / "raw.ckpt", model)
    fabric.load_raw(folder / "raw.ckpt", nn.Linear(3, 2, bias=False), strict=False)
    return torch.equal(model.weight, source.weight)


@program
def seeds():
    import os

    found = [Fabric.seed_everything(3, verbose=False), os.environ["PL_GLOBAL_SEED"], os.environ["PL_SEED_WORKERS"]]
    Fabric.seed_everything(4, workers=False, verbose=False)
    return [*found, os.environ["PL_SEED_WORKERS"], torch.initial_seed()]


@program
def compiled_modules():
    model = made().setup(torch.compile(nn.Linear(2, 1), backend="eager"))
    inner = made().setup(torch.compile(nn.Linear(2, 1), backend="eager"), _reapply_compile=False)
    return [
        type(model.module).__name__,
        list(model.state_dict()),
        list(model(torch.ones(1, 2)).shape),
        list(inner(torch.ones(1, 2)).shape),
    ]


@program
def forward_hooks_of_the_wrapper():
    model, seen = made().setup(nn.Linear(2, 1)), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(type(module).__name__))
    model(torch.ones(1, 2))
    return seen


def with_setup(function):
    def call():
        fabric = made()
        function(fabric, *pair(fabric))

    return call


class Endless(IterableDataset[int]):
    def __iter__(self):
        return iter([1])


loader = DataLoader([1, 2])
refused("unknown accelerator", lambda: made(accelerator="bad"))
refused("no gpu", lambda: None if torch.cuda.is_available() else made(accelerator="gpu"))
refused("unknown strategy", lambda: made(strategy="bad"))
refused("no devices", lambda: made(devices=0))
refused("negative devices", lambda: made(devices=-1))
refused("float devices", lambda: made(devices=1.5))
refused("list of CPUs", lambda: made(devices=[0, 1]))
refused("no nodes", lambda: made(num_nodes=0))
refused("unknown precision", lambda: made(precision="8"))
refused("unknown plugin", lambda: made(plugins=["a"]))
refused("positional", lambda: Fabric("cpu"))
refused("no logger", lambda: made().logger)
refused("launch of no function", lambda: made().launch(3))
refused("launch of a function without arguments", lambda: made().launch(lambda: 3))
refused("setup twice", with_setup(lambda f, m, o: f.setup(m)))
refused("setup of an optimizer twice", with_setup(lambda f, m, o: f.setup(nn.Linear(1, 1), o)))
refused("setup_module twice", with_setup(lambda f, m, o: f.setup_module(m)))
refused("setup_optimizers twice", with_setup(lambda f, m, o: f.setup_optimizers(o)))
refused("setup_optimizers of nothing", lambda: made().setup_optimizers())
refused("setup_optimizers of a list", lambda: made().setup_optimizers([3]))
refused("setup without a module", lambda: made().setup())
refused("setup of another object as optimizer", lambda: made().setup(nn.Linear(1, 1), 3))
refused(
    "optimizer of meta parameters",
    lambda: made().setup_optimizers(torch.optim.SGD(nn.Linear(1, 1, device="meta").parameters(), lr=1.0)),
)
refused("setup_dataloaders of nothing", lambda: made().setup_dataloaders())
refused("setup_dataloaders of a list", lambda: made().setup_dataloaders([1]))
refused("setup_dataloaders twice", lambda: made().setup_dataloaders(made().setup_dataloaders(loader)))
refused("attribute that a loader lacks", lambda: made().setup_dataloaders(loader).nothing)
refused("length of a stream", lambda: len(made().setup_dataloaders(DataLoader(Endless()))))
refused("attribute that a module lacks", with_setup(lambda f, m, o: m.nothing))
refused("clip by nothing", with_setup(lambda f, m, o: f.clip_gradients(m, o)))
refused("clip twice", with_setup(lambda f, m, o: f.clip_gradients(m, o, clip_val=1, max_norm=1)))


def clip_infinity(fabric, model, optimizer):
    (model(torch.ones(1, 3)).sum() * float("inf")).backward()
    fabric.clip_gradients(model, optimizer, max_norm=1.0)


refused("clip infinity", with_setup(clip_infinity))
refused("no_backward_sync of a bare module", lambda: made().no_backward_sync(nn.Linear(1, 1)))
refused("mark what is no method", with_setup(lambda f, m, o: m.mark_forward_method(3)))
refused("mark what is not there", with_setup(lambda f, m, o: m.mark_forward_method("nothing")))
refused("log of a vector", lambda: made(loggers=Recorder()).log("a", torch.ones(2)))
refused(
    "load of a name that is not there",
    lambda: (made().save(folder / "c", {"a": 1}), made().load(folder / "c", {"b": 1})),
)
refused("load of no file", lambda: made().load(folder / "nothing"))
refused("filter that is no dict", lambda: made().save(folder / "d", {"a": 1}, filter=lambda k, v: True))
refused("filter that is no function", lambda: made().save(folder / "d", {"a": 1}, filter={"a": 1}))
refused("filter of nothing", lambda: made().save(folder / "d", {"a": 1}, filter={"b": lambda k, v: True}))


def load_other_weights():
    torch.save(nn.Linear(1, 1).state_dict(), folder / "e")
    made().load_raw(folder / "e", nn.Linear(1, 1, bias=False))


refused("load_raw of other weights", load_other_weights)
refused(
    "backward past mixed precision", lambda: pair(made(precision="bf16-mixed"))[0](torch.ones(1, 3)).sum().backward()
)
refused("setup before launch", lambda: made(devices=2, strategy="ddp").setup(nn.Linear(1, 1)))
refused("barrier before launch", lambda: made(devices=2, strategy="ddp").barrier())
refused("all_reduce before launch", lambda: made(devices=2, strategy="ddp").all_reduce(1))
refused("init_module before launch", lambda: made(devices=2, strategy="ddp").init_module().__enter__())
refused("spawn without a function", lambda: made(devices=2, strategy="ddp_spawn").launch())


def outcome(function):
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}"


if __name__ == "__main__":
    sys.stdout.write(json.dumps({title: outcome(function) for title, function in PROGRAMS.items()}) + "\n")
