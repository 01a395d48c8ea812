"""Passes: each one kind of change to a model, as a pure function of the model and a config."""
