"""Where decision makers are, with which processes, and what survives when a fit is killed."""
