"""From a recipe to what is trained: pictures, words, networks."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from limner.data.collection import Collection
from limner.errors import LimnerError
from limner.files import read_json
from limner.nets.dit import DiT, DiTConfig
from limner.nets.vae import AutoencoderKL
from limner.noise import paths
from limner.pipeline import Pipeline, find_autoencoder
from limner.text.clip import CLIPTextConfig, CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.train.loss import DiffusionLoss, Words
from limner.train.recipe import Recipe
from limner.weights.load import load

SCHEDULERS: dict[str, dict[str, Any]] = {
    "flow": {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 1.0},
    "linear": {"_class_name": "DDIMScheduler", "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "scaled_linear": {
        "_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012,
    },
    "cosine": {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2"},
}  # fmt: skip
PREDICTION_TYPES = {"eps": "epsilon", "v": "v_prediction", "sample": "sample", "flow": "flow_prediction"}


class Reader:
    """Turns a batch's captions into `Words`: each distinct caption once, the null text for those dropped.

    A frozen encoder runs once per distinct caption of the whole run; one that is trained gets token ids.
    """

    def __init__(self, tokenizer: Tokenizer, encoder: CLIPTextModel, frozen: bool) -> None:
        self.tokenizer, self.encoder, self.frozen = tokenizer, encoder, frozen
        self.states: dict[str, torch.Tensor] = {}  # caption -> (length of its tokens, C)

    def __call__(self, captions: Sequence[str], device: torch.device) -> Words:
        distinct = list(dict.fromkeys(captions))
        rows = {caption: row for row, caption in enumerate(distinct)}
        which = torch.tensor([rows[caption] for caption in captions])
        if self.frozen:
            self._encode([caption for caption in distinct if caption not in self.states], device)
            states = [self.states[caption] for caption in distinct]
            padded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
            lengths = torch.tensor([len(state) for state in states])
            mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
            return Words(padded.to(device), mask.to(device), which.to(device))
        ids, mask = self.tokenizer.encode(distinct)
        longest = -(-int(mask.sum(dim=1).max()) // 8) * 8  # few lengths, so that compiled code is made for few
        ids, mask = ids[:, :longest], mask[:, :longest]
        return Words(ids.to(device), mask.to(device), which.to(device))

    @torch.no_grad()
    def _encode(self, captions: list[str], device: torch.device) -> None:
        for start in range(0, len(captions), 64):
            some = captions[start : start + 64]
            ids, mask = self.tokenizer.encode(some)
            hidden = self.encoder.to(device)(ids.to(device)).hidden.cpu()
            self.states.update({caption: hidden[i][mask[i]] for i, caption in enumerate(some)})


def make_text(recipe: Recipe, pictures: Collection, known: Tokenizer | None) -> tuple[Tokenizer, CLIPTextModel]:
    """The tokenizer and text encoder: CLIP's from a folder, or both made from nothing for these captions.

    A run that goes on from earlier weights has its tokenizer already: the same words must keep their ids.
    """
    text = recipe.text
    if text.pretrained is not None:
        root = Path(text.pretrained)
        config = CLIPTextConfig.from_dict(read_json(_part(root, "text_encoder") / "config.json"))
        encoder = load(lambda: CLIPTextModel(config), _part(root, "text_encoder") / "model.safetensors")
        return Tokenizer.from_pretrained(_part(root, "tokenizer")), encoder
    tokenizer = known or Tokenizer.train(pictures.all_captions(), vocab_size=text.vocab_size, length=text.length)
    config = CLIPTextConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=4 * text.hidden_size,
        num_hidden_layers=text.layers,
        num_attention_heads=text.num_heads,
        max_position_embeddings=text.length,
        eos_token_id=tokenizer.end,
    )
    return tokenizer, CLIPTextModel(config)


def _part(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def make_pipeline(recipe: Recipe, pictures: Collection, start: Path | None = None) -> Pipeline:
    """The untrained model of a recipe. The same seed gives the same weights; `start` is the checkpoint to resume."""
    torch.manual_seed(recipe.seed)
    tokenizer = encoder = None
    names = list(pictures.label_names or ()) if recipe.condition == "class" else []
    if recipe.condition == "class" and not names:
        raise LimnerError(f"{pictures.name} has no classes; use --condition text or none")
    if names:
        _check_classes(pictures, names, start)
    first = Pipeline.from_pretrained(recipe.init) if recipe.init is not None and start is None else None
    if recipe.condition == "text":
        resumed = Tokenizer.from_pretrained(start / "tokenizer") if start is not None else None
        tokenizer, encoder = make_text(recipe, pictures, first.tokenizer if first is not None else resumed)
        tokenizer.encode(pictures.all_captions())  # a caption over the budget is an error now, not at step 10,000
    model, start_vae = recipe.model, start if start is not None else recipe.autoencoder
    vae = find_autoencoder(start_vae) if recipe.autoencoder is not None and start_vae is not None else None
    size, channels = (recipe.size, recipe.channels) if vae is None else _latent_shape(recipe, vae)
    denoiser = DiT(
        DiTConfig(
            sample_size=size,
            in_channels=channels,
            **asdict(model),
            num_classes=len(names),
            text_dim=encoder.config.hidden_size if encoder is not None else 0,
        )
    )
    if first is not None:
        _take_weights(recipe, first, denoiser, encoder)
    scheduler = dict(SCHEDULERS[recipe.path])
    if recipe.path == "flow":
        scheduler["shift"] = recipe.shift
    if recipe.path != "flow":
        scheduler |= {"prediction_type": PREDICTION_TYPES[recipe.predicts], "clip_sample": True}
    elif recipe.predicts != "flow":
        raise LimnerError(f"the flow path is trained to predict flow, not {recipe.predicts}; set --predicts flow")
    defaults: dict[str, Any] = {"steps": recipe.sample_steps}
    if recipe.condition != "none":
        defaults["guidance_scale"] = recipe.guidance_scale
    return Pipeline(denoiser, scheduler, tokenizer, encoder, names, defaults, Path(recipe.output).name, vae)


def _take_weights(recipe: Recipe, first: Pipeline, denoiser: DiT, encoder: CLIPTextModel | None) -> None:
    """Copy the first model's weights; LimnerError where its networks have another shape than the recipe's."""
    pairs: list[tuple[str, Any, Any]] = [("denoiser", denoiser, first.denoiser)]
    if encoder is not None and recipe.text.pretrained is None:
        pairs.append(("text encoder", encoder, first.text_encoder))
    for name, mine, theirs in pairs:
        if theirs is None or theirs.config != mine.config:
            there = "absent" if theirs is None else theirs.config
            raise LimnerError(f"--init {recipe.init}: its {name} is {there}, the recipe's is {mine.config}")
        mine.load_state_dict(theirs.state_dict())


def _latent_shape(recipe: Recipe, vae: AutoencoderKL) -> tuple[int, int]:
    """The (side, channels) of the latents of this recipe's pictures."""
    if recipe.size % vae.factor or recipe.channels != vae.config.in_channels:
        raise LimnerError(
            f"the autoencoder of {recipe.autoencoder} takes pictures of {vae.config.in_channels} channels with sides "
            f"that are multiples of {vae.factor}, not {recipe.channels} channels and a side of {recipe.size}"
        )
    return recipe.size // vae.factor, vae.config.latent_channels


def _check_classes(pictures: Collection, names: list[str], start: Path | None) -> None:
    bad = next((row for row, label in enumerate(pictures.labels or ()) if not 0 <= label < len(names)), None)
    if bad is not None:
        raise LimnerError(f"{pictures.picture_name(bad)} has no class; expected one of {', '.join(names)}")
    before = read_json(start / "model_index.json").get("class_names") if start is not None else names
    if before != names:
        raise LimnerError(f"{start} was trained on the classes {before}, the data has {names}")


def make_loss(recipe: Recipe, pipeline: Pipeline) -> DiffusionLoss:
    """What is trained: the pipeline's denoiser and, unless it is pretrained, its text encoder."""
    encoder = None if recipe.text.pretrained is not None else pipeline.text_encoder
    return DiffusionLoss(
        pipeline.denoiser, encoder, paths.path(recipe.path), recipe.predicts, recipe.times, recipe.shift
    )
