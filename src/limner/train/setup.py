"""From a recipe to an untrained model."""

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from limner.data.collection import Collection
from limner.errors import LimnerError, LimnerWarning
from limner.families import family
from limner.files import read_json
from limner.folders import find_part
from limner.model import Model
from limner.nets.vae import AutoencoderKL
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.conditioner import Classes, Conditioner, Nothing, NullText, NullTextConfig, Text
from limner.text.encoder import LAST_STATE, AnyTokenizer, Reads, TextEncoder, open_tokenizer
from limner.text.tokenizer import Tokenizer
from limner.text.transformer import TextTransformer
from limner.train.recipe import ContrastiveRecipe, Recipe, TextRecipe
from limner.weights.parts import account, build, open_part

SCHEDULERS: dict[str, dict[str, Any]] = {
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
    "linear": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    },
    "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
}  # fmt: skip
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "sample": "sample", "flow": "flow_prediction"}


def make_model(
    recipe: Recipe, pictures: Collection, start: Path | None = None, autoencoder: AutoencoderKL | None = None
) -> Model:
    """The model of a recipe, weights initialised by recipe.seed or taken from recipe.init.

    `start` is the checkpoint to resume, which supplies tokenizer, autoencoder and a pretrained text encoder.
    `autoencoder` stands in for the recipe's.
    """
    torch.manual_seed(recipe.seed)
    first = Model.open(recipe.init) if recipe.init is not None and start is None else None
    conditioner = CONDITIONERS[recipe.condition](recipe, pictures, start, first)
    # A resumed run has its autoencoder in its checkpoint.
    if autoencoder is None:
        autoencoder = open_autoencoder(start if start is not None and recipe.autoencoder else recipe.autoencoder)
    size, channels = latent_shape(recipe, autoencoder)
    network = build(recipe.network.fit(size, channels, len(conditioner.names), conditioner.width))
    defaults = family("LimnerPipeline", recipe.condition).defaults | {"steps": recipe.sample_steps}
    defaults |= {"guidance_scale": recipe.guidance_scale} if conditioner.acts else {}
    name = Path(os.path.abspath(recipe.output)).name
    model = Model(network, conditioner, scheduler_config(recipe), autoencoder, defaults, name)
    if first is not None:
        _copy_weights(recipe, first, model)
    return model


def scheduler_config(recipe: Recipe) -> dict[str, Any]:
    """The scheduler_config.json of the finished model. LimnerError where the path excludes the prediction."""
    scheduler = dict(SCHEDULERS[recipe.path])
    if recipe.path != "flow":
        return scheduler | {"prediction_type": PREDICTION_TYPES[recipe.predicts], "clip_sample": True}
    if recipe.predicts not in ("flow", "sample"):
        raise LimnerError(
            f"the flow path is trained to predict flow or sample, not {recipe.predicts}; set --predicts flow"
        )
    return scheduler | {"shift": recipe.shift} | ({"prediction_type": "sample"} if recipe.predicts == "sample" else {})


def text_conditioner(recipe: Recipe, pictures: Collection, start: Path | None, first: Model | None) -> Conditioner:
    """Text, by `make_text_encoder`."""
    row, captions = family("LimnerPipeline", "text"), pictures.all_captions()
    known = first.tokenizers().get("tokenizer") if first is not None else None
    if start is not None:
        known = open_tokenizer(start / "tokenizer")
    text = recipe.text
    if start is not None and text.pretrained is not None:  # a resumed run has its text encoder in its checkpoint
        text = replace(text, pretrained=str(start))
    encoder = make_text_encoder(text, captions, known, row.encoders[0])
    check_captions(encoder.tokenizer, pictures, captions, fixed=known is not None or text.pretrained is not None)
    null = NullText(NullTextConfig(encoder.width)) if recipe.text.learned_null else None
    return Text([encoder], row.combine, null)


def make_text_encoder(
    text: TextRecipe, captions: list[str], known: AnyTokenizer | None = None, reads: Reads = LAST_STATE
) -> TextEncoder:
    """The pretrained text encoder of `text.pretrained`, or an untrained one with a tokenizer trained on `captions`.

    A run that continues from earlier weights passes their tokenizer as `known`, since ids must stay the same.
    """
    if text.pretrained is not None:
        root = find_part(text.pretrained, "text_encoder") or Path(text.pretrained)
        if not (root / "config.json").is_file() and not (root / "text_encoder/config.json").is_file():
            raise LimnerError(
                f"no text encoder at {text.pretrained}: expected a folder with text_encoder/ and tokenizer/, or a run "
                "that trains one (limner train world-text)"
            )
        transformer = _open_transformer(_part(root, "text_encoder"))
        return TextEncoder(open_tokenizer(_part(root, "tokenizer")), transformer, reads)
    tokenizer = known or Tokenizer.train(captions, vocab_size=text.vocab_size, length=text.length)
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=4 * text.hidden_size,
        num_hidden_layers=text.layers,
        num_attention_heads=text.num_heads,
        max_position_embeddings=text.length,
        eos_token_id=tokenizer.end,
    )
    return TextEncoder(tokenizer, CLIPTextModel(config), reads)


# By model_type in config.json; others are CLIP's.
TEXT_MODELS = {"t5": "T5EncoderModel"}


def _open_transformer(folder: Path) -> TextTransformer:
    """The text transformer of a folder, in float32 and without a projection, which no denoiser uses. Warns of tensors
    that are left out."""
    kind = TEXT_MODELS.get(read_json(folder / "config.json").get("model_type", ""), "CLIPTextModel")
    transformer: Any = open_part(folder, kind, TextTransformer).float()
    unused = [name for name in account(folder, kind).unused if not name.endswith(".position_ids")]
    if getattr(transformer.config, "projection_dim", None) is not None:
        transformer.config = replace(transformer.config, projection_dim=None)
        del transformer.text_projection
        unused.append("text_projection.weight")
    if unused:
        parts = dict.fromkeys(name.split(".")[0] for name in unused)
        warnings.warn(
            f"{folder}: the text encoder is used; left out: {', '.join(parts)} ({len(unused)} tensors)",
            LimnerWarning,
            stacklevel=2,
        )
    return transformer


def over_length(tokenizer: AnyTokenizer, texts: Sequence[str]) -> dict[str, int]:
    """The texts that have more tokens than the tokenizer's context length, and how many."""
    try:
        tokenizer.encode(list(texts))
        return {}
    except LimnerError:
        lengths = {text: len(tokenizer.pieces(text)) for text in texts}
        return {text: length for text, length in lengths.items() if length > tokenizer.length}


def check_length(
    tokenizer: AnyTokenizer, texts: Sequence[str], what: Callable[[str], str], fixed: bool, advice: str = "Shorten it"
) -> None:
    """LimnerError, naming the first text by `what`, where one is over the context length, which may be `fixed`."""
    over = over_length(tokenizer, texts)
    if not over:
        return
    first, length = next(iter(over.items()))
    others = f", as are {len(over) - 1} more" if len(over) > 1 else ""
    train = "" if fixed else f", or train with --text.length {max(over.values())}"
    shown = first if len(first) <= 80 else f"{first[:80]}..."
    raise LimnerError(
        f"{what(first)} {shown!r} has {length} tokens, start and end included, and is over the text encoder's context "
        f"length of {tokenizer.length}{others}. {advice}{train}"
    )


def check_captions(tokenizer: AnyTokenizer, pictures: Collection, captions: Sequence[str], fixed: bool) -> None:
    """LimnerError, naming its picture, for a caption over the context length: before step 1, not at step 10,000."""
    check_length(tokenizer, captions, lambda caption: f"{pictures.captioned(caption)}: the caption", fixed)


def cut_captions(tokenizer: AnyTokenizer, captions: list[str]) -> list[str]:
    """The captions without the last words of those over the context length, for data whose captions are drawn without
    end, so that they cannot all be checked."""
    over = over_length(tokenizer, captions)
    if over:
        warnings.warn(f"captions over {tokenizer.length} tokens are cut", LimnerWarning, stacklevel=2)
    return [_cut(tokenizer, caption) if caption in over else caption for caption in captions]


def _cut(tokenizer: AnyTokenizer, text: str) -> str:
    words = text.split()
    while words and len(tokenizer.pieces(" ".join(words))) > tokenizer.length:
        words.pop()
    return " ".join(words)


def _part(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def class_conditioner(recipe: Recipe, pictures: Collection, start: Path | None, first: Model | None) -> Conditioner:
    """The classes of the data. LimnerError where a resumed run had others, or another order."""
    names = list(pictures.label_names or ())
    if not names:
        raise LimnerError(f"{pictures.name} has no classes; use --condition text or none")
    bad = next((row for row, label in enumerate(pictures.labels or ()) if not 0 <= label < len(names)), None)
    if bad is not None:
        raise LimnerError(f"{pictures.picture_name(bad)} has no class; expected one of {', '.join(names)}")
    previous = read_json(start / "model_index.json").get("class_names") if start is not None else names
    if previous != names:
        raise LimnerError(f"{start} was trained on the classes {previous}, the data has {names}")
    return Classes(names)


CONDITIONERS = {"text": text_conditioner, "class": class_conditioner, "none": lambda *_: Nothing()}


def open_autoencoder(source: str | Path | None) -> AutoencoderKL | None:
    """The autoencoder of a model folder or a run, in float32; None for None."""
    if source is None:
        return None
    folder = find_part(source, "vae")
    if folder is None:
        raise LimnerError(f"no autoencoder at {source}: expected a folder with vae/, or a run that trains one")
    return open_part(folder / "vae", "AutoencoderKL", AutoencoderKL).float()


def _copy_weights(recipe: Recipe, first: Model, model: Model) -> None:
    """Copy the weights of `first`; LimnerError where its configuration differs from the recipe's."""
    theirs, ours = first.parts(), model.parts()
    if first.conditioner.names != model.conditioner.names:
        names = " and ".join(", ".join(each.conditioner.names) or "none" for each in (first, model))
        raise LimnerError(f"--init {recipe.init}: its classes and the data's differ: {names}")
    # A null text may be new; a pretrained text encoder is another one on purpose.
    kept = {"vae", *({"text_encoder"} if recipe.text.pretrained is not None else ()), *({"null_text"} - theirs.keys())}
    for name in (ours.keys() | theirs.keys()) - kept:
        one, other = (getattr(parts.get(name), "config", "absent") for parts in (theirs, ours))
        if one != other:
            raise LimnerError(f"--init {recipe.init}: its {name} is {one}, the recipe's is {other}")
        ours[name].load_state_dict(theirs[name].state_dict())


def latent_shape(recipe: Recipe | ContrastiveRecipe, autoencoder: AutoencoderKL | None) -> tuple[int, int]:
    """(side, channels) of the training data: of latents, or of pictures without an autoencoder."""
    if autoencoder is None:
        return recipe.size, recipe.channels
    config, factor = autoencoder.config, autoencoder.factor
    if recipe.size % factor or recipe.channels != config.in_channels:
        raise LimnerError(
            f"the autoencoder of {recipe.autoencoder} takes pictures of {config.in_channels} channels with sides "
            f"that are multiples of {factor}, not {recipe.channels} channels and a side of {recipe.size}"
        )
    return recipe.size // factor, config.latent_channels
