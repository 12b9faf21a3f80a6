"""Everything that is timed: a Trainer setting, and the plain loop it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from benchmarks import cnn, plain
from benchmarks.callbacks import CALLBACKS, trained_with
from benchmarks.frameworks import Framework
from benchmarks.models import make_callback, make_model
from benchmarks.timing import Batches, Setup

__all__ = ["CASES", "Case", "quiet"]


@dataclass(frozen=True)
class Case:
    """One row of the report. Both functions return seconds per `unit`."""

    key: str
    title: str
    plain: Callable[..., float]  # of the setup, and of the framework if it is a Trainer, too
    measured: Callable[[Setup, Framework], float]
    unit: Literal["step", "batch", "epoch", "fit", "step with callbacks"] = "step"
    screen: Literal["nowhere", "pipe", "terminal"] = "nowhere"  # where the output goes


def quiet(device: str, **changes: Any) -> dict[str, Any]:
    """Arguments of a Trainer with everything off that can be; `changes` win."""
    arguments: dict[str, Any] = {
        "accelerator": "gpu" if device == "cuda" else "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return {**arguments, **changes}


def with_defaults(device: str, framework: Framework, bar: str | None) -> dict[str, Any]:
    """Arguments of a Trainer as it comes, its logger being the one that needs no further package."""
    on = {"enable_checkpointing": True, "enable_progress_bar": True, "enable_model_summary": True}
    callbacks = [] if bar is None else [getattr(framework.callbacks, bar)()]
    return quiet(device, logger=framework.loggers.CSVLogger("."), callbacks=callbacks, **on)


def trained(
    setup: Setup,
    framework: Framework,
    *,
    model: dict[str, Any] | None = None,
    csv: bool = False,
    num_callbacks: int = 0,
    **arguments: Any,
) -> float:
    """Time the steps of a fit that is bare but for what is given."""
    if csv:
        arguments["logger"] = framework.loggers.CSVLogger(".")
    if num_callbacks:
        arguments["callbacks"] = [make_callback(framework) for _ in range(num_callbacks)]
    trainer = framework.trainer(**quiet(setup.device, **arguments))
    return setup.per_step(partial(trainer.fit, make_model(framework, **(model or {}))))


def trained_with_defaults(
    setup: Setup, framework: Framework, *, num_logged: int = 0, prog_bar: bool = False, bar: str | None = None
) -> float:
    """Time the steps of a fit with logger, checkpoints, summary and progress bar."""
    trainer = framework.trainer(**with_defaults(setup.device, framework, bar))
    return setup.per_step(partial(trainer.fit, make_model(framework, num_logged=num_logged, prog_bar=prog_bar)))


def fabric_trained(setup: Setup, framework: Framework) -> float:
    """Time the steps of a loop of one's own on Fabric."""
    fabric = framework.fabric(accelerator="gpu" if setup.device == "cuda" else "cpu", devices=1)

    def use(batches: Batches) -> None:
        model, optimizer = fabric.setup(*plain.model_and_optimizer(setup.device))
        for batch in batches:
            loss = model(batch).sum()
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()

    return setup.per_step(use)


def validated(setup: Setup, framework: Framework, *, num_logged: int = 0) -> float:
    """Time the batches of `validate`."""
    trainer = framework.trainer(**quiet(setup.device))
    model = make_model(framework, num_logged=num_logged)
    return setup.per_step(lambda batches: trainer.validate(model, batches, verbose=False))


def predicted(setup: Setup, framework: Framework) -> float:
    """Time the batches of `predict`, outputs kept."""
    trainer = framework.trainer(**quiet(setup.device))
    return setup.per_step(partial(trainer.predict, make_model(framework)))


def fitted_once(setup: Setup, framework: Framework, *, defaults: bool = False) -> float:
    """Time a whole fit of one batch, Trainer and model made anew: what does not depend on the number of batches."""
    clock = setup.new_clock()
    clock.start()
    arguments = with_defaults(setup.device, framework, None) if defaults else quiet(setup.device)
    framework.trainer(**arguments).fit(make_model(framework), setup.loader(1))
    clock.stop()
    return clock.seconds


def cnn_trained(setup: Setup, framework: Framework, *, defaults: bool) -> float:
    """Time an epoch of the CNN, training and validation."""
    arguments = with_defaults(setup.device, framework, None) if defaults else quiet(setup.device)
    return cnn.trained(setup, framework, arguments)


_LOG_1, _LOG_10 = {"num_logged": 1}, {"num_logged": 10}
_DEFAULTS = trained_with_defaults
_WITH_CALLBACKS: Literal["step with callbacks"] = "step with callbacks"

CASES: tuple[Case, ...] = (
    Case("unwrapped", "no Trainer: plain loop without torch's wrappers", plain.training,
         lambda setup, _: plain.training_unwrapped(setup)),
    Case("bare", "bare Trainer", plain.training, trained),
    Case("log_1", "1 logged scalar", plain.training, partial(trained, model=_LOG_1)),
    Case("log_10", "10 logged scalars", plain.training, partial(trained, model=_LOG_10)),
    Case("csv_1", "1 logged scalar, CSVLogger", plain.training, partial(trained, model=_LOG_1, csv=True)),
    Case("csv_10", "10 logged scalars, CSVLogger", plain.training, partial(trained, model=_LOG_10, csv=True)),
    Case("callbacks_5", "5 callbacks with batch hooks", plain.training, partial(trained, num_callbacks=5)),
    Case("accumulate_4", "accumulate_grad_batches=4", plain.accumulating,
         partial(trained, accumulate_grad_batches=plain.WINDOW)),
    Case("clip", "gradient_clip_val=1.0", plain.clipping, partial(trained, gradient_clip_val=plain.CLIP_NORM)),
    Case("scheduler", "a scheduler that follows steps", plain.scheduling, partial(trained, model={"schedules": True})),
    Case("manual", "manual optimization", plain.training, partial(trained, model={"is_manual": True})),
    Case("defaults_pipe", "defaults, output to a pipe", plain.training, _DEFAULTS, screen="pipe"),
    Case("defaults_terminal", "defaults, output to a terminal", plain.training, _DEFAULTS, screen="terminal"),
    Case("defaults_tqdm", "defaults with TQDMProgressBar, terminal", plain.training,
         partial(_DEFAULTS, bar="TQDMProgressBar"), screen="terminal"),
    Case("defaults_shown", "defaults, 1 scalar logged and shown, terminal", plain.training,
         partial(_DEFAULTS, num_logged=1, prog_bar=True), screen="terminal"),
    Case("fabric", "a loop on Fabric", plain.training, fabric_trained),
    Case("validate", "validate", plain.evaluating, validated, unit="batch"),
    Case("validate_log_1", "validate, 1 logged scalar", plain.evaluating, partial(validated, num_logged=1),
         unit="batch"),
    Case("predict", "predict", plain.predicting, predicted, unit="batch"),
    Case("fit_bare", "fit of one batch, bare", plain.one_batch, fitted_once, unit="fit"),
    Case("fit_defaults", "fit of one batch, defaults", plain.one_batch, partial(fitted_once, defaults=True),
         unit="fit", screen="pipe"),
    Case("cnn_bare", "CNN with validation, bare", cnn.plain, partial(cnn_trained, defaults=False), unit="epoch"),
    Case("cnn_defaults", "CNN with validation, defaults", cnn.plain, partial(cnn_trained, defaults=True),
         unit="epoch", screen="pipe"),
    *(
        Case(f"callback_{key}", title, trained_with, partial(trained_with, make=make), unit=_WITH_CALLBACKS,
             screen=screen)  # type: ignore[arg-type]  # one of the three
        for key, title, make, screen in CALLBACKS
    ),
)  # fmt: skip
