"""The parts of train.py: settings and flags, checkpoints and logs, results, reports, processes,
the memory of a step. None of them trains anything, so all may be skipped at first.
"""
