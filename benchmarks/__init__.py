"""What a Trainer costs over the loop one would write by hand: `python -m benchmarks --help`.

    __main__   asks the workers in turn, round after round, and prints the report
      worker   one process per package: measures a case, beside it the same plain loop
        cases    every Trainer setting that is timed; `plain` has the loops they are compared with, `cnn` a real model
        shape    what is counted instead of timed: frames, Python calls, device syncs
      imports  fresh processes that only import
      report   numbers to tables

The workers import torch, the standard library and the package they measure, nothing else.
"""
