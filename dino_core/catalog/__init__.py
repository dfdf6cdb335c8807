"""What there is to look at, and with: models, galleries, example photos; and keeping them open.

entries     what is listed under a root, for pickers
pictures    an upload, an example, an image of a gallery: one kind of thing
questions   what a page asks about its picture, read without trust
answers     the answers, one module a kind of question
workbench   models and galleries kept open; answers what a page asks about a picture

Importing this imports no torch: a page answers first, and `Workbench.start` loads the rest.
"""

from dino_core.catalog.entries import (
    STARTER,
    Example,
    ModelEntry,
    check_model,
    check_named,
    examples,
    galleries,
    gallery_key,
    gallery_title,
    model_title,
    models,
    no_model,
)
from dino_core.catalog.links import Link
from dino_core.catalog.pictures import (
    MAX_PIXELS,
    MAX_UPLOAD,
    Picture,
    from_example,
    from_gallery,
    jpeg,
    jpeg_url,
    load,
    uploaded,
)
from dino_core.catalog.questions import Job, Question, Scene, Withdrawn
from dino_core.catalog.workbench import (
    Neighbor,
    Neighborhood,
    Sight,
    Status,
    Workbench,
    label_vote,
)

__all__ = [
    "MAX_PIXELS",
    "MAX_UPLOAD",
    "STARTER",
    "Example",
    "Job",
    "Link",
    "ModelEntry",
    "Neighbor",
    "Neighborhood",
    "Picture",
    "Question",
    "Scene",
    "Sight",
    "Status",
    "Withdrawn",
    "Workbench",
    "check_model",
    "check_named",
    "examples",
    "from_example",
    "from_gallery",
    "galleries",
    "gallery_key",
    "gallery_title",
    "jpeg",
    "jpeg_url",
    "label_vote",
    "load",
    "model_title",
    "models",
    "no_model",
    "uploaded",
]
