"""Mixed logit model in torch: mixing distributions, parameters, priors, panels and likelihood, and a Pyro program."""
