"""Pipeline: words in, pictures out. One folder on disk, laid out as Hugging Face lays out its pipelines."""

import re
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from limner.denoise import Denoise, Denoiser, cfg, clip, interval
from limner.errors import LimnerError, unknown
from limner.files import read_config, read_json, write_json
from limner.nets.dit import DiT
from limner.nets.vae import AutoencoderKL
from limner.noise.draws import Keyed, TorchDraws
from limner.noise.grids import Plan, plan
from limner.picture import to_pictures
from limner.sample import check_grid, sampler
from limner.settings import Settings
from limner.text.clip import CLIPTextModel
from limner.text.tokenizer import Tokenizer
from limner.weights.file import write_tensors
from limner.weights.parts import WEIGHTS, Index, check_fit, read_autoencoder, read_denoiser, read_text_encoder

EMBEDDED = Path(__file__).parent / "embedded"
LARGEST = 2**26
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Progress(NamedTuple):
    """One sampling step done: x and the x0 it points to, both (B, C, H, W), in latents where there is an autoencoder
    (`Pipeline.decode` makes pictures of them)."""

    step: int
    steps: int
    x: Tensor
    x0: Tensor


@dataclass
class Pipeline:
    """A denoiser with what it needs to be asked in words: `Pipeline.from_pretrained(folder)("a handwritten seven")`."""

    denoiser: DiT
    scheduler: dict[str, Any]
    tokenizer: Tokenizer | None = None
    text_encoder: CLIPTextModel | None = None
    class_names: Sequence[str] = ()
    defaults: dict[str, Any] = field(default_factory=dict)
    name: str = "model"
    vae: AutoencoderKL | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> "Pipeline":
        """Open a model folder, a training run (its newest checkpoint), or, with None, the shipped model.

        `dtype` is float32, bfloat16 or float16. Raises LimnerError for a folder that is neither, and for files that
        are cut short, hold other tensors or do not fit each other.
        """
        if dtype not in DTYPES:
            raise unknown("dtype", dtype, DTYPES)
        folder = find_model(source)
        target, kind = _device(device), DTYPES[dtype]
        index = read_config(folder / "model_index.json", Index.from_dict)
        denoiser = read_denoiser(folder).to(target, kind)
        tokenizer = text_encoder = None
        if (folder / "text_encoder").is_dir():
            text_encoder = read_text_encoder(folder / "text_encoder").to(target, kind)
            tokenizer = Tokenizer.from_pretrained(folder / "tokenizer")
        scheduler = read_json(folder / "scheduler/scheduler_config.json")
        vae = read_autoencoder(folder).to(target, kind) if index.has_autoencoder else None
        check_fit(folder, denoiser, tokenizer, text_encoder, vae, index.class_names)
        name = "limner" if source is None else Path(source).name
        return cls(denoiser, scheduler, tokenizer, text_encoder, list(index.class_names), index.defaults, name, vae)

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write the folder that `from_pretrained` opens; `dtype` converts the weights on the way."""
        folder = Path(folder)

        def write(net: torch.nn.Module, path: Path) -> None:
            write_tensors(path, {name: t if dtype is None else t.to(dtype) for name, t in net.state_dict().items()})

        if self.vae is not None:
            save_autoencoder(self.vae, folder, dtype)
        write(self.denoiser, folder / "denoiser" / WEIGHTS)
        write_json(folder / "denoiser/config.json", asdict(self.denoiser.config))
        write_json(folder / "scheduler/scheduler_config.json", self.scheduler)
        if self.text_encoder is not None and self.tokenizer is not None:
            write(self.text_encoder, folder / "text_encoder/model.safetensors")
            write_json(folder / "text_encoder/config.json", self.text_encoder.config.to_dict())
            self.tokenizer.save(folder / "tokenizer")
        index: dict[str, Any] = {"_class_name": "LimnerPipeline", "denoiser": ["limner", "DiT"]}
        index |= {"vae": ["diffusers", "AutoencoderKL"]} if self.vae is not None else {}
        index |= {"class_names": list(self.class_names)} if self.class_names else {}
        write_json(folder / "model_index.json", index | {"defaults": self.defaults})

    @property
    def device(self) -> torch.device:
        """Where the denoiser's weights are."""
        return self.denoiser.patch_in.weight.device

    def resolve(self, settings: Settings) -> tuple[Plan, float]:
        """The plan and the guidance scale that these settings mean for this model."""
        steps = settings.steps if settings.steps is not None else self.defaults.get("steps", 20)
        made = plan(self.scheduler, steps, settings.sampler, settings.schedule, settings.eta, settings.shift)
        check_grid(made.grid)
        scale = settings.guidance_scale
        if not self.is_conditional:
            if scale not in (None, 1.0):
                raise LimnerError("this model has no condition, so guidance has nothing to act on; leave it out")
            return made, 1.0
        return made, float(self.defaults.get("guidance_scale", 3.0) if scale is None else scale)

    @property
    def is_conditional(self) -> bool:
        """Whether the model can be asked for anything: words or classes."""
        return bool(self.text_encoder is not None or self.class_names)

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        progress: Callable[[Progress], object] | None = None,
        **settings: Any,
    ) -> list[Image]:
        """Paint `num_images` pictures of each prompt; picture k has seed + k, or the k-th of the seeds given.

        Further keywords are those of `Settings`. Returns PIL pictures, mode L or RGB.
        """
        last = None
        with closing(
            self.stream(prompt, negative_prompt=negative_prompt, num_images=num_images, seed=seed, **settings)
        ) as steps:
            for last in steps:
                if progress is not None:
                    progress(last)
        assert last is not None
        return to_pictures(self.decode(last.x))

    @torch.inference_mode()
    def decode(self, x: Tensor) -> Tensor:
        """What the denoiser works on -> pictures (B, C, H, W) in [-1, 1]; the same tensor without an autoencoder."""
        if self.vae is None:
            return x
        z = self.vae.from_latents(x.to(next(self.vae.parameters()).dtype))
        return self.vae.decode(z.contiguous(memory_format=torch.channels_last)).float()

    @property
    def size(self) -> int:
        """Side in pixels of the pictures the model was trained on."""
        return self.denoiser.config.sample_size * self._factor

    @property
    def _factor(self) -> int:
        return 1 if self.vae is None else self.vae.factor

    def stream(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        **settings: Any,
    ) -> Generator[Progress, None, None]:
        """The same, one `Progress` a step: for previews; stop iterating to cancel."""
        wanted = _settings(settings)
        if num_images < 1:
            raise LimnerError(f"the number of pictures must be at least 1, not {num_images}")
        prompts = [p for p in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_images)]
        seeds = [seed + k for k in range(len(prompts))] if isinstance(seed, int) else list(seed)
        if len(seeds) != len(prompts):
            raise LimnerError(
                f"{len(seeds)} seeds were given for {len(prompts)} pictures; give one each, or one number"
            )
        made, scale = self.resolve(wanted)
        shape = self._shape(wanted)
        draws: Keyed | TorchDraws
        if wanted.rng == "keyed":
            draws = Keyed(seeds, shape, self.device)
        elif wanted.rng == "torch":
            draws = TorchDraws(seeds[0], (len(prompts), *shape), self.device)
        else:
            raise unknown("rng", wanted.rng, ["keyed", "torch"])
        denoise = self._denoise(prompts, negative_prompt, scale, made, wanted)
        return self._paint(made, denoise if made.clip is None else clip(denoise, made.clip), draws)

    @torch.inference_mode()
    def _paint(self, made: Plan, denoise: Denoise, draws: Keyed | TorchDraws) -> Generator[Progress, None, None]:
        x = made.start * draws.start()
        run = sampler(made.sampler)(denoise, x, made.grid, draws, kappa=made.path.kappa, eta=made.eta)
        for i, (x, x0) in enumerate(run, start=1):
            yield Progress(i, len(made.grid) - 1, x, x0)

    def _shape(self, settings: Settings) -> tuple[int, int, int]:
        config = self.denoiser.config
        width, height = (self.size if s is None else s for s in (settings.width, settings.height))
        factor = self._factor
        patch = config.patch_size * factor  # in pixels
        if width * height > LARGEST:
            raise LimnerError(f"a picture of {width}x{height} is over the largest that is painted, {LARGEST} pixels")
        for name, side in (("width", width), ("height", height)):
            if side < patch or side % patch:
                near = max(patch, round(side / patch) * patch)
                raise LimnerError(f"{name} {side} is not a multiple of the model's patch of {patch}; try {near}")
        return config.in_channels, height // factor, width // factor

    @torch.inference_mode()
    def _denoise(self, prompts: list[str], negative: str, scale: float, made: Plan, settings: Settings) -> Denoise:
        """The guided denoiser of these prompts; conditions are encoded here, once for all steps."""

        def bound(condition: dict[str, Any], copies: int) -> Denoiser:
            def network(x: Tensor, t: Tensor) -> Tensor:
                return self.denoiser(x, t, **condition)

            dtype = self.denoiser.patch_in.weight.dtype
            return Denoiser(network, made.predicts, dtype=dtype, copies=copies)

        def plain() -> Denoiser:
            return bound(self._condition(prompts, settings.truncate), 1)

        if scale == 1.0 or not self.is_conditional:
            return plain()
        both = self._condition([negative] * len(prompts) + prompts, settings.truncate)
        guided = cfg(bound(both, 2), scale, settings.guidance_rescale)
        return guided if settings.guidance_interval is None else interval(guided, plain(), *settings.guidance_interval)

    def _condition(self, prompts: list[str], truncate: bool) -> dict[str, Any]:
        """Keyword arguments of the denoiser for these prompts; "" is the null text or the null class."""
        if self.text_encoder is not None and self.tokenizer is not None:
            distinct = list(dict.fromkeys(prompts))
            ids, mask = self.tokenizer.encode(distinct, truncate=truncate)
            which = torch.tensor([distinct.index(p) for p in prompts], device=self.device)
            states = self.text_encoder(ids.to(self.device)).hidden
            return {"text": self.denoiser.read(states[which], mask.to(self.device)[which])}
        if self.class_names:
            return {"labels": torch.tensor([self._label(p) for p in prompts], device=self.device)}
        if any(prompts):
            raise LimnerError("this model reads no text; leave the prompt out")
        return {}

    def _label(self, name: str) -> int:
        if not name:
            return self.denoiser.null_class
        if name not in self.class_names:
            raise unknown("class", name, self.class_names)
        return list(self.class_names).index(name)


def _settings(given: dict[str, Any]) -> Settings:
    unknown_names = set(given) - set(Settings.__dataclass_fields__)
    if unknown_names:
        raise unknown("setting", sorted(unknown_names)[0], Settings.__dataclass_fields__)
    return Settings(**given)


def save_autoencoder(vae: AutoencoderKL, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write folder/vae as diffusers lays it out."""
    tensors = {name: t if dtype is None else t.to(dtype) for name, t in vae.state_dict().items()}
    write_tensors(folder / "vae" / WEIGHTS, tensors)
    write_json(folder / "vae/config.json", vae.config.to_dict())


def find_autoencoder(path: str | Path) -> AutoencoderKL:
    """The autoencoder, in float32, of a model folder, of a training run's newest checkpoint, or the "shipped" one."""
    folder = EMBEDDED if path == "shipped" else Path(path)
    found = [folder, *(checkpoint for _, checkpoint in reversed(checkpoints(folder)))]
    whole = next((each for each in found if (each / "vae/config.json").is_file()), None)
    if whole is None:
        raise LimnerError(f"no autoencoder at {path}: expected a folder with vae/config.json, or a run that trains one")
    return read_autoencoder(whole).float()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LimnerError(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error
    return device


def find_model(source: str | Path | None) -> Path:
    """The folder with the model_index.json: `source` itself, or the newest checkpoint of a training run."""
    folder = EMBEDDED if source in (None, "shipped") else Path(source)
    if (folder / "model_index.json").is_file():
        return folder
    if not folder.exists():
        raise LimnerError(f"no model at {folder}: give a model folder or a training run, or leave --model out")
    found = checkpoints(folder)
    if not found:
        raise LimnerError(f"{folder} is not a model: it holds neither model_index.json nor a checkpoint-<step> folder")
    return found[-1][1]


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """The (step, folder) of every checkpoint-<step> folder of a training run, the newest last."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in run.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in named if match)
