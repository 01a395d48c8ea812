"""Quantisation: after training (`apply`), simulated in torch (`simulate`), and what both rest on."""
