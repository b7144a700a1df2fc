"""Diagnostics of weighted draws and of Markov chains."""
