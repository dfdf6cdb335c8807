"""Train DINO on your own images, and see what it learned.

The rooms, ground floor first (imports only run downwards):

1. `errors`, `rng`, `files`, `distributed`, `runs`: sentences for users, keyed random numbers,
   whole-or-nothing writes, rank and world size, the run folder; and what serving and watching
   processes needs (`memory`, `processes`, `usage`, `launcher`, `serving`).
2. `data`, `augment`, `models`, `measures`: images in, crops, backbones and weights, numbers out.
3. `lenses`: what a model sees in one image.
4. `training`, `gallery`, `views`: learning from a collection; what a model sees in a collection;
   a view replayed.
5. `evaluation`, `emergence`, `benchmarks`, `api`: the published protocols; a run's history seen;
   how fast it all is; the lens from Python.
6. `catalog`: what a page's visitors ask, answered.

Importing `dino_core` imports none of them, so that a program answers before torch is loaded.
"""

__version__ = "0.1.0"
