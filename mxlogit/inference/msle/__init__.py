"""Maximum simulated likelihood: settings, search, covariances."""
