"""Generated, photograph-like images with classes and exact masks: the offline default.

They know the truth that real collections only guess at: what is in a picture, and where.
"""

from dino_core.data.scenes.source import Scenes, open_scenes

__all__ = ["Scenes", "open_scenes"]
