"""`python -m serving.benchmark`: the service beside bare calls and other servers."""
