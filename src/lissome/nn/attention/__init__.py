"""Sparse attention: which keys a query sees (`patterns`, `scorers`), and one entry that computes it (`attend`)."""
