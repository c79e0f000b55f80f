"""The versions of the program and of its checkpoints, alone in a file that imports nothing, for the build reads it."""

__version__ = "0.1.0"
CHECKPOINT_FORMAT = 1
