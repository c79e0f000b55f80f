"""What attention costs, and what it does inside a network."""
