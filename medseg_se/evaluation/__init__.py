"""Judging predictions: a folder of label maps against the truth."""
