"""The log of a run: scalars and pictures in TensorBoard's files, and the curves of the loss as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from limner.files import write_atomically

HELD_OUT = "loss/held_out"
Curves = Mapping[str, Sequence[tuple[int, float]]]  # (step, value) by name


class Log:
    """The scalars and pictures of a run, in folder/logs and folder/loss.png; those after step `resumed` are purged."""

    def __init__(self, folder: Path, resumed: int) -> None:
        self.folder = folder
        past = read_curves(folder / "logs") if resumed and (folder / "logs").is_dir() else {}
        self.curves = {name: [point for point in points if point[0] <= resumed] for name, points in past.items()}
        self.writer = SummaryWriter(str(folder / "logs"), purge_step=resumed + 1)

    def __enter__(self) -> "Log":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.close()

    def add(self, name: str, value: float, step: int) -> None:
        """Log a scalar."""
        self.writer.add_scalar(name, value, step)
        self.curves.setdefault(name, []).append((step, value))

    def add_picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Log a picture."""
        self.writer.add_image(name, np.asarray(picture.convert("RGB")), step, dataformats="HWC")

    def draw(self, step: int) -> None:
        """Write folder/loss.png, and log it, once there are two losses to join."""
        if len(self.curves.get("loss", ())) > 1:
            draw_curves(self.curves, self.folder / "loss.png")
            with Image.open(self.folder / "loss.png") as picture:
                self.add_picture("loss_curve", picture, step)


def read_curves(logs: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars in TensorBoard's files of a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={"scalars": 0, "images": 1}).Reload()
    return {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}


def smooth(values: Sequence[float]) -> list[float]:
    """The exponential moving average of a curve, over about a 25th of it, without bias towards its start."""
    keep = 1 - 1 / max(1.0, len(values) / 25)
    total, weight, smoothed = 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def draw_curves(curves: Curves, file: Path) -> None:
    """Draw the loss, smoothed over its points, with the held-out loss, above the learning rate against the step."""
    from matplotlib.figure import Figure  # slow to import

    figure = Figure(figsize=(8, 5), dpi=100)
    top, bottom = figure.subplots(
        2, 1, sharex=True, height_ratios=(4, 1), gridspec_kw={"left": 0.12, "right": 0.97, "top": 0.96}
    )
    steps, losses = zip(*curves["loss"], strict=True)
    top.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1)
    top.plot(steps, smooth(losses), color="tab:blue", label="loss, smoothed")
    if curves.get(HELD_OUT):
        top.plot(*zip(*curves[HELD_OUT], strict=True), color="tab:orange", marker="o", markersize=3, label="held out")
    if min(losses) > 0:
        top.set_yscale("log")
    top.set_ylabel("loss")
    top.legend()
    top.grid(alpha=0.3)
    if curves.get("learning_rate"):
        bottom.plot(*zip(*curves["learning_rate"], strict=True), color="tab:gray")
    bottom.set_ylim(bottom=0)
    bottom.set_ylabel("learning rate")
    bottom.set_xlabel("step")
    write_atomically(file, lambda temporary: figure.savefig(temporary, format="png"))
