"""Optimisers that know neither likelihoods nor coordinates."""
