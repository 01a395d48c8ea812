"""One training loop, what it reads (batches), what it writes (checkpoints), and the fine-tune that is its first user."""
