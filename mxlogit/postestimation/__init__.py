"""Comparison of engines, functions and tests of parameters, plots, and memory reports."""
