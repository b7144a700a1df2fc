"""Variational inference by second-order steps on the marginal likelihood: search, Gaussian fit, correction, flow."""
