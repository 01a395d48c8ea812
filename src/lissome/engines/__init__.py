"""Engines run a form of a model: one small interface (`support`, `load`, and a session's `run` and `describe`).

Imports stay light here: a measured process must hold the engine and nothing else.
"""
