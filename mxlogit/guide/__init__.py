"""The variational family: encoder, polish, population factor, and their Pyro program."""
