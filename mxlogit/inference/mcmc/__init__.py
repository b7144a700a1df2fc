"""Markov chain Monte Carlo: settings, and runs of three samplers."""
