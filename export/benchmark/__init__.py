"""`python -m export.benchmark`: how fast the exported forms run, beside named baselines."""
