"""Decoders for the kernel: weights from Hugging Face models and GGUF files."""
