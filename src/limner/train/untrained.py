"""The untrained model of a recipe: that of training before its first step, made without the recipe's pictures."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from limner.data.captions import CIFAR10, from_labels
from limner.data.collection import Collection
from limner.data.mixture import Mixture
from limner.data.pictures import Pictures
from limner.data.sources import Source, open_source
from limner.devices import dtypes_of, find_device
from limner.errors import LimnerError, LimnerWarning, unknown
from limner.folders import find_part
from limner.model import Model
from limner.nets.vae import AutoencoderKL
from limner.train.recipe import AutoencoderRecipe, ContrastiveRecipe, Recipe, Run, load_recipe, recipe_names
from limner.train.setup import make_model

Kind = TypeVar("Kind", bound=Run)
# The class names of the data sets of the Hub that captions are made for.
CLASS_NAMES = {"mnist": tuple("0123456789"), "cifar10": tuple(words[0] for words in CIFAR10.label_words)}


def open_untrained(
    name: str | None, prompts: Sequence[str] = ("",), device: str = "cpu", dtype: str = "float32"
) -> Model:
    """The untrained model of the recipe `name`, with `device` and `dtype` as in `Model.open`.

    LimnerError for a name that is not a recipe's, and for a recipe that trains no denoiser.
    """
    recipe, where = _denoiser_recipe(name), find_device(device)
    model = replace(make_untrained(recipe, prompts), name=f"{name} (random weights)").to(where)
    dtypes = dtypes_of(dtype, torch.float32, model.parts())
    for folder, part in model.parts().items():
        part.to(dtypes[folder])
    return model


def make_untrained(recipe: Recipe, prompts: Sequence[str]) -> Model:
    """The untrained model of `recipe`, frozen; `prompts` stand in for what only its data could tell."""
    described = Pictures([], "") if recipe.condition == "none" else describe(recipe.data, prompts)
    model = make_model(_with_text(recipe), described, autoencoder=_autoencoder(recipe))
    for part in model.parts().values():
        part.eval().requires_grad_(False)
    return model


def _with_text(recipe: Recipe) -> Recipe:
    """The recipe, with the untrained text encoder of the recipe whose run it would take, if that run is not there."""
    maker = _maker(recipe.text.pretrained, "text_encoder", ContrastiveRecipe)
    return recipe if maker is None else replace(recipe, text=replace(maker.text, learned_null=recipe.text.learned_null))


def _autoencoder(recipe: Recipe) -> AutoencoderKL | None:
    """The untrained autoencoder of the recipe whose run it would take, if that run is not there."""
    maker = _maker(recipe.autoencoder, "vae", AutoencoderRecipe)
    if maker is None:
        return None
    torch.manual_seed(maker.seed)
    return AutoencoderKL(replace(maker.network, in_channels=maker.channels, out_channels=maker.channels))


def _maker(wanted: str | None, part: str, kind: type[Kind]) -> Kind | None:
    """The shipped recipe of this kind whose run is `wanted`, if there is no such run with the part."""
    if wanted is None or find_part(wanted, part) is not None:
        return None
    runs = (load_recipe(name)[0] for name in recipe_names())
    return next((run for run in runs if isinstance(run, kind) and run.output == wanted), None)


def describe(source: Source, prompts: Sequence[str]) -> Collection:
    """The captions and class names of a source, without its pictures.

    Those of the captioned world, MNIST and CIFAR-10 are known; for others `prompts` take their place, with a warning.
    """
    name = source.name if source.path is None else ""
    if "=" in name:
        names = [entry.strip().rpartition("=")[0] for entry in name.split(",")]
        return Mixture([describe(replace(source, name=each), prompts) for each in names], [1.0] * len(names))
    if name.partition(":")[0] == "world":
        return open_source(source)  # its pictures are drawn when loaded
    if name in CLASS_NAMES:
        classes = list(CLASS_NAMES[name])
        captions = from_labels(range(len(classes)), classes, source.templates, name)
        return Pictures([], name, captions, [], classes)
    name = source.path or name
    warnings.warn(
        f"the data of the recipe, {name}, is not opened: the prompts stand in for its captions and class names, so the "
        "vocabulary, the classes and with them the parameter count may differ from the trained model's",
        LimnerWarning,
        stacklevel=2,
    )
    classes = list(dict.fromkeys(prompts))
    return Pictures([], name, [classes], [], classes)


def denoiser_recipes() -> dict[str, Recipe]:
    """The shipped recipes whose model paints, by name."""
    recipes = {name: load_recipe(name)[0] for name in recipe_names()}
    return {name: recipe for name, recipe in recipes.items() if isinstance(recipe, Recipe)}


def _denoiser_recipe(name: str | None) -> Recipe:
    known = denoiser_recipes()
    if name is None:
        raise LimnerError(f"--random paints with the untrained model of a recipe: --model {' | '.join(known)}")
    if name in recipe_names() and name not in known:
        raise LimnerError(f"--random: the recipe {name} trains no denoiser; those that do: {', '.join(known)}")
    if name not in known:
        raise LimnerError(f"--random: {unknown('recipe', name, known)}")
    return known[name]
