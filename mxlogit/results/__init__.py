"""Tables and predictions of a fit of any engine."""
