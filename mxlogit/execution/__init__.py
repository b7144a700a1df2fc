"""Access to decision makers in memory, on disk and across processes, and checkpoints of interrupted fits."""
