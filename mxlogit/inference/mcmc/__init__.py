"""Markov chain Monte Carlo: settings, and runs of the three samplers."""
