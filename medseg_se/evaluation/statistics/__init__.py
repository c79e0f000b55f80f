"""How sure a number is and whether two differ: intervals, tests, corrections, calibration. NumPy and SciPy only."""
