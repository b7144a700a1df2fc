"""The mixed logit in torch: maps, parameters, priors, panels and the one likelihood kernel; and its Pyro program."""
