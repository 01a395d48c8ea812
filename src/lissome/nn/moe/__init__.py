"""Layers of experts: a router sends each token to a few of many small feed-forward networks."""
