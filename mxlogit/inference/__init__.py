"""Inference engines: settings objects whose `run` turns a model and a panel into a `Fit`."""
