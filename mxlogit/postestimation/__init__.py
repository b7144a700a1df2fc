"""After a fit: engines side by side, hypotheses, pictures, where memory goes."""
