"""Answers about whole scans: classes and numbers, with how sure they are and whether the scan is like those of the training."""
