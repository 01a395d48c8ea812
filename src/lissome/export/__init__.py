"""Targets: one traced program becomes every form an engine can run, and each form is held to the original."""
