"""Decoders in C++: weight matrices of 4, 8 or 32 bits, and all layers of a step in one call."""
