"""Tables and predictions of a fit, whatever engine made it."""
