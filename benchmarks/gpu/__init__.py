"""Proof and measurement on an NVIDIA GPU: `python -m benchmarks.gpu --help`.

Each part is a process of its own, with a time limit, and consists of cases. Its JSON file is written after every case,
so a run that was stopped continues where it was; a case or a part that fails does not end the run.
"""
