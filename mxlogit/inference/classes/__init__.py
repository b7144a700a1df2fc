"""Fits of populations that consist of classes."""
