"""Integrals over tastes, by importance sampling around modes or by simulation, and posteriors of tastes."""
