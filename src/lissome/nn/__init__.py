"""Models: load one from wherever it lives, call it, name it, save it."""
