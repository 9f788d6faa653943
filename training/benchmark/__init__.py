"""`python -m training.benchmark`: how fast training is, beside named baselines of the same run."""
