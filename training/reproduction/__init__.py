"""The paper's tables, run again: what was published, what is run for it, and both side by side.

- `published`: the rows of the tables with their figures.
- `plans`: which recipe stands behind a row, at which scale.
- `launch`: training and evaluation as programs of their own, stoppable and resumable.
- `compare`: ours beside the published figure, with difference and standard error.
- `evidence`: our own list of questions about CIFAR.
"""
