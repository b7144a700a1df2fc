"""Places of decision makers (memory, shards, processes), and checkpoints that survive when a fit is killed."""
