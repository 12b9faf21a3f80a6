"""What a Trainer costs over the loop one would write by hand: `python -m benchmarks --help`.

    __main__   command line
      driver   asks the workers in turn, round after round
      worker   one process per package: measures a case, beside it the same plain loop
        cases    every Trainer setting that is timed, on `models`, or on a real one (`cnn`); `plain` has the loops they
                 are compared with, `timing` the clocks, `screen` the pipe and the terminal that take the output
        shape    what is counted instead of timed: frames, Python calls, device syncs
      ranks    processes with torch.distributed; the same on several ranks
      checkpoints  fresh processes that save once: seconds and memory
      imports  fresh processes that only import
      report   numbers to tables

The workers import torch, the standard library and the package they measure, nothing else.
"""
