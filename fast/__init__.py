"""The same numbers in less time or memory. Nothing here is needed to understand the algorithm, and
nothing here imports the rest of this repository.
"""
