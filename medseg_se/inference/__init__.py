"""From a checkpoint and scans to label maps: loading, tiling, and prediction of whole cohorts."""
