"""The explorer's pages: layout alone. What they show is computed in `dino_core`."""
