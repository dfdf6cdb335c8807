"""A fresh training state, made from a recipe alone."""

import importlib.util

import torch

from dino_core.rng import torch_seed
from dino_core.training.network import Network, create_student, create_teacher
from dino_core.training.optim import create_optimizer
from dino_core.training.parallel import parallel, synchronize_batch_norm
from dino_core.training.recipe import Recipe
from dino_core.training.starting import start_from
from dino_core.training.step import TrainState


def create_state(recipe: Recipe, device: torch.device) -> TrainState:
    """Student, teacher, optimizer and center before step 0: a function of the recipe's seed."""
    torch.manual_seed(torch_seed(recipe.seed, "init"))
    student = create_student(recipe.backbone, recipe.head)
    if recipe.init is not None:
        start_from(student.backbone, recipe.init)
    student = student.to(device)
    student.residual = torch.bfloat16 if recipe.residual == "bf16" else torch.float32
    student.compiled = _compiles(recipe, device)
    synchronize_batch_norm(student)
    return TrainState(
        student=student,
        teacher=create_teacher(student),
        optimizer=create_optimizer(recipe.optim.optimizer, student),
        center=torch.zeros(1, recipe.head.out_dim, device=device),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16"),
        caller=parallel(student, device),
    )


def without_effect(recipe: Recipe, student: Network) -> list[str]:
    """A sentence for each setting that was chosen and changes nothing here."""
    architecture, found = recipe.backbone.architecture, []
    if recipe.residual == "bf16" and recipe.precision == "fp32":
        found.append("--residual bf16 changes nothing at --precision fp32: use --precision bf16")
    elif recipe.residual == "bf16" and not student.packed:
        found.append(f"--residual bf16 changes nothing: {architecture} is no plain ViT")
    if recipe.compile == "on" and not student.packed:
        found.append(f"--compile on changes nothing: {architecture} is no plain ViT")
    return found


def _compiles(recipe: Recipe, device: torch.device) -> bool:
    """Whether blocks run compiled; on CUDA that takes Triton, which not every system has."""
    if recipe.compile == "auto":
        return device.type == "cuda" and importlib.util.find_spec("triton") is not None
    return recipe.compile == "on"
