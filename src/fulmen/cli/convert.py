"""`fulmen convert`: a checkpoint as a file of another kind."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

from fulmen.cli.text import count_text, paragraph, size_text
from fulmen.utilities.command_line import CommandParser, one_of, refuse, say

__all__ = ["command", "make_parser"]

_PROG = "fulmen convert"
_DESCRIPTION = """\
Convert a checkpoint. The ending of OUT says what is written:

  .ckpt         a checkpoint for `load_from_checkpoint` and `ckpt_path=`, in the
                layout of Lightning 2.6, which both fulmen and Lightning load
                (--to lightning leaves out what only fulmen reads)
  .pt .pth      a state_dict, for `model.load_state_dict(torch.load(...))`
  .safetensors  the same without pickle; epoch, step and hyperparameters go
                along as metadata

IN may be any of them, a file of Lightning 1.6 or later, any dict of `torch.save` with weights in it, or a folder of
shards."""
_EPILOG = """\
examples:
  fulmen convert last.ckpt model.safetensors --dtype bf16
  fulmen convert last.ckpt net.pt --strip-prefix net. --strip-prefix _orig_mod.
  fulmen convert old.ckpt new.ckpt    # an old file in the layout of today
  fulmen convert last.ckpt weights.ckpt --weights-only"""
_DTYPES = ("float32", "32", "bfloat16", "bf16", "float16", "16", "float64", "64")


def command(arguments: Sequence[str]) -> None:
    """Run `fulmen convert`.

    Args:
        arguments: What follows the command's name.
    """
    options = make_parser().parse_args(list(arguments))
    from fulmen.checkpoint.conversion import DTYPES, convert_checkpoint  # loads torch
    from fulmen.utilities.exceptions import DamagedFileError

    try:
        done = convert_checkpoint(
            options.source,
            options.target,
            to=options.to,
            strip_prefixes=options.strip_prefix,
            add_prefix=options.add_prefix,
            weights_only=options.weights_only,
            dtype=DTYPES[options.dtype] if options.dtype else None,
            key=options.key,
            trust=options.trust,
            overwrite=options.overwrite,
        )
    except (OSError, ValueError, KeyError, ImportError, DamagedFileError, pickle.UnpicklingError) as error:
        refuse(_PROG, error.args[0] if isinstance(error, KeyError) else error)
    say(f"{done.path}: {count_text(done.num_tensors, 'tensor')}, {size_text(done.num_bytes)}"
        f" ({done.from_format} -> {done.to_format})")  # fmt: skip
    for note in done.notes:
        say(paragraph(note))


def make_parser() -> CommandParser:
    """Return what reads the command line."""
    parser = CommandParser(_PROG, _DESCRIPTION, _EPILOG)
    parser.add_argument("source", metavar="IN", help="the file, or a folder of shards")
    parser.add_argument("target", metavar="OUT", help="the file to write")
    parser.add_argument(
        "--to",
        type=one_of("fulmen", "lightning", "weights", "safetensors"),
        metavar="KIND",
        help="fulmen, lightning, weights or safetensors, where the ending of OUT does not say it",
    )
    parser.add_argument("--weights-only", action="store_true", help="leave out what is only needed to train on")
    parser.add_argument(
        "--dtype",
        type=one_of(*_DTYPES),
        help="convert weights: float32 (32), bfloat16 (bf16), float16 (16), float64 (64)",
    )
    parser.add_argument(
        "--strip-prefix", action="append", default=[], metavar="P", help="take P off names of weights; may be repeated"
    )
    parser.add_argument("--add-prefix", default="", metavar="P", help="put P before names of weights")
    parser.add_argument("--key", help="where in IN the weights are, e.g. ema.model; looked for by default")
    parser.add_argument(
        "--trust", action="store_true", help="also load objects that are no plain data: this runs code of the file"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    return parser
