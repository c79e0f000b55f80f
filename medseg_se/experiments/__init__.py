"""Experiments: a grid of trainings that differ in one thing at a time, and what is made of their results."""
