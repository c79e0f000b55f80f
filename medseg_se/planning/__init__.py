"""Planning: what the data are like, and what a training on this machine should be."""
