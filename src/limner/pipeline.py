"""Pipeline: prompts in, pictures out, each with its generation parameters."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from limner.denoise import Denoise, Denoiser, cfg, clip, interval
from limner.errors import LimnerError, unknown, warn_no_effect
from limner.model import Model
from limner.nets.network import take
from limner.noise.draws import KeyedNoise, TorchNoise
from limner.picture import to_pictures
from limner.record import parameters_text, settings_entries
from limner.sample import check_grid
from limner.schedulers import Schedule, read_schedule, sampler
from limner.settings import Settings
from limner.text.conditioner import Ask
from limner.weights.load import check_finite

MAX_PIXELS = 2**26


class Progress(NamedTuple):
    """The state after a sampling step: x and the predicted x0, both (B, C, H, W), latents where there is an autoencoder
    (`Model.decode` converts them to pictures)."""

    step: int
    steps: int
    x: Tensor
    x0: Tensor


class Painting(NamedTuple):
    """A batch ready to be sampled: iterate over `steps`, and stop iterating to cancel. `records` are the generation
    parameters of each picture, in AUTOMATIC1111's format."""

    steps: Iterator[Progress]
    records: list[str]


class Pipeline:
    """Text-to-image generation with a model: `Pipeline.from_pretrained(folder)("a handwritten seven")`."""

    def __init__(self, model: Model) -> None:
        self.model = model

    @classmethod
    def from_pretrained(
        cls, source: str | Path | None = None, device: str = "cpu", dtype: str = "float32"
    ) -> "Pipeline":
        """`Model.open` as a pipeline: a model folder, a training run or, with None, the shipped model."""
        return cls(Model.open(source, device, dtype))

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that `from_pretrained` can load; `dtype` converts the saved weights."""
        self.model.save(folder, dtype)

    def __call__(
        self,
        prompt: str | Sequence[str] = "",
        *,
        progress: Callable[[Progress], object] | None = None,
        **options: Any,
    ) -> list[Image]:
        """Paint `num_images` pictures of each prompt; picture k has seed + k, or the k-th of the seeds given.

        Further keywords are those of `paint` and of `Settings`. Returns PIL pictures, mode L or RGB, with their
        generation parameters in `info["parameters"]`.
        """
        painting, last = self.paint(prompt, **options), None
        for last in painting.steps:
            if progress is not None:
                progress(last)
        assert last is not None
        x = self.model.decode(last.x)
        if not bool(torch.isfinite(x).all()):  # name the part with non-finite weights, if there is one
            check_finite(self.model.parts())
        pictures = to_pictures(x)
        for picture, record in zip(pictures, painting.records, strict=True):
            picture.info["parameters"] = record
        return pictures

    def paint(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | None = None,
        num_images: int = 1,
        seed: int | Sequence[int] = 0,
        **options: Any,
    ) -> Painting:
        """Prepare a batch for step-by-step sampling. Prompts are encoded here, once for all steps.

        Raises LimnerError for settings that the model cannot use; warns where one has no effect.
        """
        settings = Settings.from_options(options)
        if num_images < 1:
            raise LimnerError(f"the number of pictures must be at least 1, not {num_images}")
        prompts = [p for p in ([prompt] if isinstance(prompt, str) else prompt) for _ in range(num_images)]
        schedule, scale = self.resolve(settings)
        size = self._size(settings)
        draws, seeds = self._noise(seed, len(prompts), size, settings)
        if scale == 1.0:
            reason = "guidance 1" if self.model.conditioner.acts else "a model without text"
            warn_no_effect(reason, guidance_rescale=settings.guidance_rescale,
                           guidance_interval=settings.guidance_interval, negative_prompt=negative_prompt)  # fmt: skip
            negative_prompt, settings = None, replace(settings, guidance_rescale=0.0, guidance_interval=None)
        denoise = self._denoise(prompts, negative_prompt, scale, schedule, settings)
        run = sampler(schedule.sampler)(
            denoise, schedule.start * draws.start(), schedule.grid, draws, kappa=schedule.path.kappa, eta=schedule.eta
        )
        steps = len(schedule.grid) - 1
        precision = str(self.model.dtype).removeprefix("torch.")
        entries = settings_entries(settings, schedule, scale, size, self.model.name, precision)
        records = [
            parameters_text(p, negative_prompt or "", entries | each) for p, each in zip(prompts, seeds, strict=True)
        ]
        return Painting(map(lambda step, state: Progress(step, steps, *state), count(1), run), records)

    def resolve(self, settings: Settings) -> tuple[Schedule, float]:
        """The schedule and the guidance scale, the model's defaults filled in."""
        model = self.model
        steps = settings.steps if settings.steps is not None else model.defaults["steps"]
        schedule = read_schedule(
            model.scheduler, steps, settings.sampler, settings.schedule, settings.eta, settings.shift
        )
        check_grid(schedule.grid)
        scale = settings.guidance_scale
        if not model.conditioner.acts:
            if scale not in (None, 1.0):
                raise LimnerError("this model has no condition, so guidance has nothing to act on; leave it out")
            return schedule, 1.0
        return schedule, float(model.defaults["guidance_scale"] if scale is None else scale)

    def _size(self, settings: Settings) -> tuple[int, int]:
        """(width, height) in pixels."""
        multiple = self.model.network.multiple * self.model.factor  # in pixels
        width, height = (self.model.size if side is None else side for side in (settings.width, settings.height))
        if width * height > MAX_PIXELS:
            raise LimnerError(f"a picture of {width}x{height} is over the largest that is painted, {MAX_PIXELS} pixels")
        for name, side in (("width", width), ("height", height)):
            if side < multiple or side % multiple:
                near = max(multiple, round(side / multiple) * multiple)
                raise LimnerError(f"{name} {side} is not a multiple of {multiple}, as this model needs; try {near}")
        return width, height

    def _noise(
        self, seed: int | Sequence[int], pictures: int, size: tuple[int, int], settings: Settings
    ) -> tuple[KeyedNoise | TorchNoise, list[dict[str, object]]]:
        """The noise of the batch, and the entries about it in each picture's record."""
        width, height = (side // self.model.factor for side in size)
        shape = (self.model.network.latent_channels, height, width)
        if settings.rng == "torch":
            if not isinstance(seed, int):
                raise LimnerError("rng torch has one generator for the whole batch: give one seed, not a list")
            places: list[dict[str, object]] = [
                {"Batch size": pictures, "Batch pos": k} if pictures > 1 else {} for k in range(pictures)
            ]
            draws = TorchNoise(seed, (pictures, *shape), self.model.device)
            return draws, [{"Seed": seed} | place for place in places]
        if settings.rng != "keyed":
            raise unknown("rng", settings.rng, ["keyed", "torch"])
        seeds = [seed + k for k in range(pictures)] if isinstance(seed, int) else list(seed)
        if len(seeds) != pictures:
            raise LimnerError(f"{len(seeds)} seeds were given for {pictures} pictures; give one each, or one number")
        return KeyedNoise(seeds, shape, self.model.device), [{"Seed": each} for each in seeds]

    @torch.inference_mode()
    def _denoise(
        self, prompts: list[str], negative: str | None, scale: float, schedule: Schedule, settings: Settings
    ) -> Denoise:
        """The denoiser of these prompts, with guidance, and with x0 clipped if the scheduler clips it."""
        network, n = self.model.network, len(prompts)
        ask = Ask(settings.truncate)
        guided = scale != 1.0
        rows = [*([negative] * n if guided else []), *prompts]  # one batch, for equal padding
        condition = network.prepare(self.model.conditioner(rows, ask))

        def denoiser(condition: Any, copies: int) -> Denoiser:
            return Denoiser(network, schedule.predicts, condition, dtype=self.model.dtype, copies=copies)

        plain = denoiser(condition, 1 + guided)
        denoise: Denoise = cfg(plain, scale, settings.guidance_rescale) if guided else plain
        if settings.guidance_interval is not None:
            denoise = interval(denoise, denoiser(take(condition, slice(n, None)), 1), *settings.guidance_interval)
        return denoise if schedule.clip is None else clip(denoise, schedule.clip)
