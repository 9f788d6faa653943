"""Offline batch prediction: every input gets its rows, in input order, whatever befalls it."""
