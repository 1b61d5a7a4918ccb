"""The forward process of a model on a real picture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL.Image import Image

from limner.canvas import Frame, open_canvas, plan, read_pictures
from limner.images import Source
from limner.noise.draws import KeyedNoise
from limner.noise.level import Level
from limner.picture import to_pictures
from limner.pipeline import Pipeline
from limner.settings import Settings

TIMES = 9  # by default


class Noised(NamedTuple):
    """A picture at a level: alpha x0 + sigma eps, decoded where the model paints latents."""

    level: Level
    picture: Image

    @property
    def label(self) -> str:
        return f"t = {self.level.t:g}\nalpha = {self.level.alpha:.3g}\nsigma = {self.level.sigma:.3g}"


def noised(pipe: Pipeline, image: Source, times: Sequence[float], seed: int, settings: Settings) -> list[Noised]:
    """The picture, brought to the size that is painted, at these times of the model's path, all with one noise.

    Without times, at TIMES of them, evenly spaced. Raises LimnerError for a time outside the path.
    """
    model, path = pipe.model, pipe.resolve(settings)[0].path
    if not times:
        times = path.times(torch.linspace(0, 1, TIMES, dtype=torch.float64)).tolist()
    levels = [path.level(t) for t in times]
    [picture] = read_pictures(image, "image")
    frame = Frame(model.network.multiple * model.factor, model.size, model.channels)
    layout = plan(picture.size, settings.width, settings.height, None, frame)
    x0 = model.encode(open_canvas([picture], [], layout, frame).pixels().to(model.device))
    _, channels, height, width = x0.shape
    eps = KeyedNoise([seed], (channels, height, width), model.device).start()
    pictures = (to_pictures(model.decode(level.alpha * x0 + level.sigma * eps))[0] for level in levels)
    return [Noised(level, each) for level, each in zip(levels, pictures, strict=True)]
