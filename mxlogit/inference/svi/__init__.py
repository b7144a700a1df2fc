"""Stochastic variational inference: encoder, flow and q(theta) trained on the bound of a guide."""
