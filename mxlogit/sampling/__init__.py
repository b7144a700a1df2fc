"""Markov chain Monte Carlo: states, steps, covariance priors. Chains run as one batch with separate random streams."""
