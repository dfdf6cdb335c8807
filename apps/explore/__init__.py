"""The parts of the explorer: what is open, what is served, what is drawn."""
