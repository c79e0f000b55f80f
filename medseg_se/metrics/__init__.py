"""Measures of how well a segmentation agrees with the truth: arrays in, numbers out."""
