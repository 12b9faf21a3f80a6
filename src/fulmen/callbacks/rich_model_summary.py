"""RichModelSummary: the model summary as a table of `rich`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fulmen.callbacks.model_summary import ModelSummary
from fulmen.utilities.lazy import require
from fulmen.utilities.model_summary.model_summary import get_formatted_model_size, get_human_readable_count

__all__ = ["RichModelSummary"]

_RIGHT = ("Params", "Params per Device", "FLOPs", "In sizes", "Out sizes")


class RichModelSummary(ModelSummary):
    """Prints a table of the layers of the module when fit begins, on the first process.

    Args:
        max_depth: 1 lists the children, 2 their children too, -1 all layers, 0 shows nothing.
        summarize_kwargs: Arguments of `rich.table.Table`, e.g. `header_style="bold"`.

    Raises:
        ModuleNotFoundError: `rich` is not installed.

    Example::

        trainer = Trainer(callbacks=[RichModelSummary(max_depth=-1, header_style="bold")])
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        require("rich", extra="rich", for_="RichModelSummary")
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    def show_further(totals: list[tuple[str, str]]) -> None:
        """Print what training needs beside the weights.

        Args:
            totals: Numbers as text, with their names.
        """
        if totals:
            _print_totals((title, number) for number, title in totals)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print a summary; override it to show yours.

        Args:
            summary_data: The table by columns: title and cells.
            total_parameters: Number of values in all parameters.
            trainable_parameters: Number of those that are trained.
            model_size: Size of the parameters in MB.
            total_training_modes: Number of modules in mode "train" and "eval".
            total_flops: FLOPs of one forward pass of the example input; 0 without one.
            summarize_kwargs: What the constructor was given, for `rich.table.Table`.
        """
        from rich import get_console
        from rich.table import Table
        from rich.text import Text

        table = Table(**{"header_style": "bold magenta", **summarize_kwargs})
        for title, _ in summary_data:
            dim = "dim" if title == " " else None
            table.add_column(title, justify="right" if title in _RIGHT else "left", style=dim, overflow="fold")
        for row in zip(*(cells for _, cells in summary_data), strict=True):
            table.add_row(*(Text(cell.strip()) for cell in row))  # no markup: sizes stand in brackets

        totals = [
            ("Trainable params", get_human_readable_count(trainable_parameters)),
            ("Non-trainable params", get_human_readable_count(total_parameters - trainable_parameters)),
            ("Total params", get_human_readable_count(total_parameters)),
            ("Total estimated model params size (MB)", get_formatted_model_size(model_size)),
            ("Modules in train mode", str(total_training_modes["train"])),
            ("Modules in eval mode", str(total_training_modes["eval"])),
            ("Total FLOPs", get_human_readable_count(total_flops)),
        ]
        get_console().print(table)
        _print_totals(totals)


def _print_totals(totals: Iterable[tuple[str, str]]) -> None:
    from rich import get_console
    from rich.text import Text

    lines = [Text.assemble((title, "bold"), f": {number.strip()}") for title, number in totals]
    get_console().print(Text("\n").join(lines))
