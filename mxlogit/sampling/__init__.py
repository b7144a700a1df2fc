"""Markov chains: states, steps, covariance priors, convergence. All chains move at once, each on its own randomness."""
