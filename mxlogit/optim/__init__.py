"""General-purpose optimisers, independent of likelihoods and coordinates."""
