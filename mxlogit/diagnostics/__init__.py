"""Diagnostics of importance weights and of Markov chains."""
