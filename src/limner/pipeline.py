"""Pipeline: prompts, pictures and masks in, pictures out, each with its generation parameters."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL.Image import Image
from torch import Tensor

from limner.advice import check_interval, warn_noise_alone, warn_unguided, warn_wasted
from limner.canvas import Canvas, Frame, blank_canvas, open_canvas, plan, read_pictures
from limner.checks import as_text, as_whole
from limner.denoise import Denoise, Denoiser, cfg, clip, interval
from limner.errors import ConfigError, LimnerError, LimnerWarning, unknown, warn_no_effect
from limner.images import Source
from limner.model import Model
from limner.nets.network import take
from limner.noise.draws import Draws, KeyedNoise, TorchNoise, check_seed
from limner.picture import to_pictures
from limner.record import parameters_text, settings_entries
from limner.sample import check_grid
from limner.schedulers import Schedule, read_schedule, sampler
from limner.settings import Settings
from limner.start import Start, start_from_noise, start_from_picture
from limner.text.conditioner import Ask
from limner.weights.load import check_finite

MAX_PIXELS = 2**26
MAX_PICTURES = 2**16  # of one call


class Progress(NamedTuple):
    """The state after a sampling step: x and the predicted x0, both (B, C, H, W), latents where there is an autoencoder
    (`Model.decode` converts them to pictures)."""

    step: int
    steps: int
    x: Tensor
    x0: Tensor


class Painting(NamedTuple):
    """A batch ready to be sampled: iterate over `steps`, and stop iterating to cancel. `records` are the generation
    parameters of each picture, in AUTOMATIC1111's format; `paste` puts the kept pixels of an inpainted picture into the
    painted ones."""

    steps: Iterator[Progress]
    records: list[str]
    paste: Callable[[list[Image]], list[Image]]


class Pipeline:
    """Text-to-image generation with a model: `Pipeline.from_pretrained(folder)("a handwritten seven")`."""

    def __init__(self, model: Model) -> None:
        if model.device.type == "meta":
            raise LimnerError("nothing can be painted on the device 'meta', which holds no numbers; try --device cpu")
        self.model = model

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        allow_pickle: bool = False,
        without: Sequence[str] = (),
        offload: bool = False,
    ) -> "Pipeline":
        """`Model.open` as a pipeline: a model folder, a training run or, with None, the shipped model."""
        return cls(Model.open(source, device, dtype, allow_pickle, without, offload))

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
        pictures = painting.paste(to_pictures(x))
        for picture, record in zip(pictures, painting.records, strict=True):
            picture.info["parameters"] = record
        return pictures

    def paint(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | None = None,
        image: Source | Sequence[Source] | None = None,
        mask: Source | Sequence[Source] | None = None,
        num_images: int = 1,
        seed: int | Iterable[int] = 0,
        **options: Any,
    ) -> Painting:
        """Prepare a batch for step-by-step sampling. Prompts are encoded here, once for all steps.

        `image` is a picture to start from, a file or a PIL picture, or one for each prompt; where there is a `mask`, of
        the same size, only its white pixels are repainted. Raises LimnerError for settings that the model cannot use;
        warns where one has no effect.
        """
        settings = Settings.from_options(options)
        asked, num_images = _texts(prompt), as_whole("num_images", num_images)
        if num_images < 1:
            raise LimnerError(f"the number of pictures must be at least 1, not {num_images}")
        negative_prompt = None if negative_prompt is None else as_text("negative_prompt", negative_prompt)
        if len(asked) * num_images > MAX_PICTURES:
            raise LimnerError(f"{len(asked) * num_images} pictures are over the most at once, {MAX_PICTURES}")
        prompts = [p for p in asked for _ in range(num_images)]
        canvas, settings = self._canvas(image, mask, settings, len(asked))
        schedule, scale = self.resolve(settings)
        warn_wasted(schedule.grid)
        size = self._size(settings)
        draws, places = self._noise(_seeds(seed), len(prompts), size, settings)
        if scale == 1.0:
            reason = "guidance 1" if self.model.conditioner.acts else "a model without text"
            warn_no_effect(reason, guidance_rescale=settings.guidance_rescale,
                           guidance_interval=settings.guidance_interval, negative_prompt=negative_prompt)  # fmt: skip
            negative_prompt, settings = None, replace(settings, guidance_rescale=0.0, guidance_interval=None)
        else:
            warn_unguided(prompts, negative_prompt, settings.guidance_scale)
        entries = settings_entries(settings, schedule, scale, size, self.model.name, self.model.precision)
        start, schedule = self._start(canvas, size, schedule, settings.strength, draws)
        check_interval(settings.guidance_interval, schedule.grid)
        denoise = self._denoise(prompts, negative_prompt, scale, schedule, settings, start)
        hashes = [{}] if canvas is None else canvas.hashes
        if settings.rng == "torch" and len(hashes) > 1:  # each draws a posterior of its own
            entries["Init images"] = len(hashes)
        records = [
            parameters_text(p, negative_prompt or "", entries | each | hashes[k * len(hashes) // len(prompts)])
            for k, (p, each) in enumerate(zip(prompts, places, strict=True))
        ]
        paste = partial(canvas.paste, feather=settings.feather or 0) if canvas and settings.paste else list
        return Painting(_run(denoise, start, schedule, draws), records, paste)

    def _canvas(
        self,
        image: Source | Sequence[Source] | None,
        mask: Source | Sequence[Source] | None,
        settings: Settings,
        prompts: int,
    ) -> tuple[Canvas | None, Settings]:
        """What is painted on, and the settings with its size and its defaults filled in."""
        if image is None:
            for name, value in (("mask", mask), ("extend", settings.extend)):
                if value is not None:
                    raise LimnerError(f"{name} needs a picture to repaint: give an image")
            warn_no_effect("no picture to start from", strength=settings.strength, feather=settings.feather,
                           no_paste=not settings.paste)  # fmt: skip
            return None, replace(settings, strength=None, feather=None, paste=True)
        pictures = read_pictures(image, "image")
        masks = [] if mask is None else read_pictures(mask, "mask")
        if len(pictures) not in (1, prompts):
            raise LimnerError(f"{len(pictures)} pictures were given for {prompts} prompts; give one, or one each")
        frame = Frame(self.model.network.multiple * self.model.factor, self.model.size, self.model.channels)
        layout = plan(pictures[0].size, settings.width, settings.height, settings.extend, frame)
        settings = replace(settings, width=layout.painted[0], height=layout.painted[1])
        self._size(settings)
        canvas = open_canvas(pictures, masks, layout, frame)
        masked, pastes = bool(canvas.masks), settings.paste and bool(canvas.masks)
        if not pastes:
            warn_no_effect("pasting off" if masked else "no mask", feather=settings.feather,
                           no_paste=not settings.paste and not masked)  # fmt: skip
        strength = settings.strength if settings.strength is not None else 1.0 if masked else 0.8
        feather = (settings.feather if settings.feather is not None else canvas.overlap // 2) if pastes else None
        if canvas.overlap and feather and feather > canvas.overlap:
            warnings.warn(
                f"the feather is cut to the extension's overlap, {canvas.overlap}", LimnerWarning, stacklevel=3
            )
            feather = canvas.overlap
        strength = strength if canvas.repaints else 0.0
        return canvas, replace(settings, strength=strength, feather=feather, paste=settings.paste or not masked)

    def _start(
        self, canvas: Canvas | None, size: tuple[int, int], schedule: Schedule, strength: float | None, draws: Draws
    ) -> tuple[Start, Schedule]:
        """Where sampling starts, and the part of the schedule that is run."""
        if canvas is None:
            if not self.model.network.concat_channels:
                return start_from_noise(schedule, draws), schedule
            canvas, strength = blank_canvas(size, self.model.channels), 1.0
        schedule = schedule.cut(strength or 0.0)
        warn_noise_alone(schedule.grid, strength or 0.0)
        return start_from_picture(self.model, canvas, schedule, strength or 0.0, draws), schedule

    def resolve(self, settings: Settings) -> tuple[Schedule, float]:
        """The schedule and the guidance scale, the model's defaults filled in."""
        model = self.model
        steps = settings.steps if settings.steps is not None else model.defaults["steps"]
        options = (settings.sampler, settings.schedule, settings.eta, settings.shift)
        tokens = model.network.tokens(*(side // model.factor for side in self._size(settings)))
        try:
            schedule = read_schedule(model.scheduler, steps, *options, tokens)
        except ConfigError as error:
            raise LimnerError(f"{model.name}/scheduler/scheduler_config.json: {error}") from error
        check_grid(schedule.grid)
        scale = settings.guidance_scale
        if not model.conditioner.acts:
            if scale not in (None, 1.0):
                raise LimnerError("this model has no condition, so guidance has nothing to act on; leave it out")
            return schedule, 1.0
        return schedule, float(model.defaults["guidance_scale"] if scale is None else scale)

    def _size(self, settings: Settings) -> tuple[int, int]:
        """(width, height) in pixels."""
        network, factor = self.model.network, self.model.factor
        multiple, largest = network.multiple * factor, (network.largest or MAX_PIXELS) * factor  # in pixels
        width, height = (self.model.size if side is None else side for side in (settings.width, settings.height))
        if width * height > MAX_PIXELS:
            raise LimnerError(f"a picture of {width}x{height} is over the largest that is painted, {MAX_PIXELS} pixels")
        for name, side in (("width", width), ("height", height)):
            if side < 1:
                raise LimnerError(f"{name} must be at least {multiple}, not {side}")
            if side % multiple:
                near = max(multiple, round(side / multiple) * multiple)
                raise LimnerError(f"{name} {side} is not a multiple of {multiple}, as this model needs; try {near}")
            if side > largest:
                raise LimnerError(f"{name} {side} is over this model's largest, where its positions end: {largest}")
        return width, height

    def _noise(
        self, seed: int | list[int], pictures: int, size: tuple[int, int], settings: Settings
    ) -> tuple[Draws, list[dict[str, object]]]:
        """The noise of the batch, and the entries about it in each picture's record."""
        width, height = (side // self.model.factor for side in size)
        shape = (self.model.network.latent_channels, height, width)
        if settings.rng == "torch":
            if settings.variation_seed is not None:
                raise LimnerError("a variation turns keyed noise; leave --rng torch out")
            if isinstance(seed, list):
                raise LimnerError("rng torch has one generator for the whole batch: give one seed, not a list")
            places: list[dict[str, object]] = [
                {"Batch size": pictures, "Batch pos": k} if pictures > 1 else {} for k in range(pictures)
            ]
            noise = TorchNoise(seed, (pictures, *shape), self.model.device)
            return noise, [{"Seed": seed} | place for place in places]
        if settings.rng != "keyed":
            raise unknown("rng", settings.rng, ["keyed", "torch"])
        # All variations are of one picture, as AUTOMATIC1111 counts.
        stride = 1 if settings.variation_seed is None else 0
        seeds = seed if isinstance(seed, list) else [check_seed(seed) + stride * k for k in range(pictures)]
        if len(seeds) != pictures:
            raise LimnerError(f"{len(seeds)} seeds were given for {pictures} pictures; give one each, or one number")
        entries: list[dict[str, object]] = [{"Seed": each} for each in seeds]
        if settings.variation_seed is None:
            return KeyedNoise(seeds, shape, self.model.device), entries
        others = [settings.variation_seed + k for k in range(pictures)]
        draws = KeyedNoise(seeds, shape, self.model.device, others, settings.variation_strength or 0.0)
        return draws, [each | {"Variation seed": other} for each, other in zip(entries, others, strict=True)]

    @torch.inference_mode()
    def _denoise(
        self,
        prompts: list[str],
        negative: str | None,
        scale: float,
        schedule: Schedule,
        settings: Settings,
        start: Start,
    ) -> Denoise:
        """The denoiser of these prompts, with guidance, x0 clipped if the scheduler clips it, and what is kept."""
        network, n = self.model.network, len(prompts)
        ask = Ask(settings.truncate)
        guided = scale != 1.0
        rows = [*([negative] * n if guided else []), *prompts]  # one batch, for equal padding
        picture = {name: torch.cat([entry] * (1 + guided)) for name, entry in (start.condition or {}).items()}
        condition = network.prepare(self.model.conditioner(rows, ask) | picture)

        def denoiser(condition: Any, copies: int) -> Denoiser:
            return Denoiser(network, schedule.predicts, condition, dtype=self.model.dtype, copies=copies)

        plain = denoiser(condition, 1 + guided)
        denoise: Denoise = cfg(plain, scale, settings.guidance_rescale) if guided else plain
        if settings.guidance_interval is not None:
            denoise = interval(denoise, denoiser(take(condition, slice(n, None)), 1), *settings.guidance_interval)
        return start.keep(denoise if schedule.clip is None else clip(denoise, schedule.clip), schedule.grid[0])


def _texts(prompt: str | Sequence[str]) -> list[str]:
    """One prompt or several, as a list."""
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence):
        raise LimnerError(f"prompt must be a text or a list of texts, not {prompt!r:.60}")
    if not prompts:
        raise LimnerError('no prompt was given; for a picture of nothing in particular give ""')
    return [as_text("prompt", each) for each in prompts]


def _seeds(seed: int | Iterable[int]) -> int | list[int]:
    """One seed or several; a tensor without dimensions is one."""
    if isinstance(seed, Iterable) and getattr(seed, "ndim", 1) != 0:
        return [as_whole("seed", each) for each in seed]
    return as_whole("seed", seed)


def _run(denoise: Denoise, start: Start, schedule: Schedule, draws: Draws) -> Iterator[Progress]:
    """The sampler's steps; a schedule without steps gives the picture itself, as step 0."""
    steps = len(schedule.grid) - 1
    if not steps and start.known is not None:
        yield Progress(0, 0, start.known, start.known)
    run = sampler(schedule.sampler)(denoise, start.x, schedule.grid, draws, kappa=schedule.path.kappa, eta=schedule.eta)
    for i, (x, x0) in enumerate(run, 1):
        yield Progress(i, steps, start.put_back(x) if i == steps else x, x0)
