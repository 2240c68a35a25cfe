"""Find a digit on a cluttered canvas with a few glimpses, against networks that see all of it.

    python -m examples.glimpse_digits

One handwritten digit lies somewhere on a canvas among fragments of others, each a quarter of a
digit's area (Mnih et al., 1406.6247, section 4.1, with 8 x 8 digits). Digits and fragments of the
test canvases are never seen in training. A recurrent attention model, a fully connected network
and a convolutional network of similar size train once on the same canvases. A glimpse is on the
digit if its centre lies in the digit's 8 x 8 pixels; that is scored, but no loss rewards it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from attnkernels.extras import needs
from attnkernels.models.glimpse import RecurrentAttentionModel, hybrid_loss
from examples import results, training
from examples.digits import SIDE, Digits, split
from examples.options import parser

with needs("examples"):
    from matplotlib.figure import Figure

    from attnkernels.viz import plot_glimpses

BRIGHTNESS = 3.0  # scales the pixels of a canvas, most of them 0, to a deviation of about 1
FRAGMENT = SIDE // 2
LEARNING_RATE = 1e-3
OF_LOCATOR = 0.03  # lower: otherwise chance drives it into a corner early on, for good
SHOWN = 8  # the first canvases, in the figure


class Size(NamedTuple):
    """The settings that --tiny and --full change."""

    steps: int
    batch: int = 256
    test: int = 5000
    canvas: int = 24
    fragments: int = 4
    glimpses: int = 4
    std: float = 0.2


TINY = Size(steps=4, batch=8, test=40)
DEFAULT = Size(steps=7000)
FULL = Size(steps=100_000, batch=1024, test=20_000, canvas=40, fragments=10, glimpses=6, std=0.15)


class Canvases(NamedTuple):
    """Canvases: images (B, 1, H, W), labels (B,), and corners (B, 2).

    A corner has the row and the column of the digit's first pixel.
    """

    images: Tensor
    labels: Tensor
    corners: Tensor


@training.interruptible
def main(arguments: list[str] | None = None) -> int:
    options = parser("glimpse_digits", __doc__.splitlines()[0]).parse_args(arguments)
    size = TINY if options.tiny else FULL if options.full else DEFAULT
    source, held_out = split()
    test = cluttered(held_out, size.test, size, torch.Generator().manual_seed(options.seed + 1))
    rows, record = [], {}
    for name, model in nets(size, options.seed).items():
        seconds = train(name, model.to(options.device), source, size, options)
        record[name] = evaluate(model.eval(), test, options.device) | {"seconds": seconds}
        rows.append(row(name, record[name]))
        if isinstance(model, RecurrentAttentionModel):
            figure = picture(model, test, options.device)
    results.write(
        options.out,
        options=vars(options),
        columns=("net", "parameters", "operations", "error", "last glimpse on the digit",
                 "minutes of training"),
        rows=rows,
        figures={"glimpses": figure},
        record={"size": size._asdict(), "models": record},
    )  # fmt: skip
    return 0


def cluttered(source: Digits, batch: int, size: Size, generator: torch.Generator) -> Canvases:
    """Make canvases with a digit and fragments of digits from `source` at uniformly drawn places.

    Where they overlap, the brighter pixel wins.
    """
    which = torch.arange(batch)[:, None, None]
    images = torch.zeros(batch, size.canvas, size.canvas)

    def draw(least: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a window of `least` pixels in one of `most`; return its corner and indices."""
        corners = torch.randint(most - least + 1, (batch, 2), generator=generator)
        pixels = corners.unsqueeze(-1) + torch.arange(least)
        return corners, pixels[:, 0, :, None], pixels[:, 1, None, :]

    def paste(patches: Tensor) -> Tensor:
        corners, row, column = draw(patches.shape[-1], size.canvas)
        images[which, row, column] = torch.maximum(images[which, row, column], patches)
        return corners

    for _ in range(size.fragments):
        of = torch.randint(len(source.labels), (batch, 1, 1), generator=generator)
        _, row, column = draw(FRAGMENT, SIDE)
        paste(source.images[of, row, column])
    chosen = torch.randint(len(source.labels), (batch,), generator=generator)
    corners = paste(source.images[chosen])
    return Canvases(BRIGHTNESS * images.unsqueeze(1), source.labels[chosen], corners)


def nets(size: Size, seed: int) -> dict[str, nn.Module]:
    """Make the three models, the last two wide enough to match the parameters of the first."""
    torch.manual_seed(seed)
    glimpses = RecurrentAttentionModel(10, size=SIDE, glimpses=size.glimpses, std=size.std)
    pooled = size.canvas // 4

    def fully_connected(width: int) -> nn.Module:
        layers = nn.Linear(size.canvas**2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(width, 10))

    def convolutional(width: int) -> nn.Module:
        return nn.Sequential(
            *(nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(32 * pooled**2, width), nn.ReLU(), nn.Linear(width, 10)),
        )

    wanted = parameters(glimpses)
    return {
        "glimpses": glimpses,
        "fully connected": as_large(fully_connected, wanted),
        "convolutional": as_large(convolutional, wanted),
    }


def as_large(make: Callable[[int], nn.Module], wanted: int) -> nn.Module:
    """Return make(width) of the least width with at least `wanted` parameters, He-initialised."""
    with torch.device("meta"):  # allocates nothing and draws no numbers
        width = next(width for width in count(1) if parameters(make(width)) >= wanted)
    made = make(width)
    for layer in made:
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return made


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def train(name: str, model: nn.Module, source: Digits, size: Size, options: Any) -> float:
    """Train and return the seconds that it took."""
    locator, others = [], []
    for path, parameter in model.named_parameters():
        (locator if path.startswith("locator") else others).append(parameter)
    slow = {"params": locator, "lr": OF_LOCATOR * LEARNING_RATE}
    optimizer = torch.optim.Adam([{"params": others}, slow], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / size.steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    checkpoint = Path(options.out) / f"{name.replace(' ', '_')}.pt"

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(1_000_003 * (options.seed + 1) + number)
        canvases = cluttered(source, size.batch, size, generator)
        found = model(canvases.images.to(options.device))
        labels = canvases.labels.to(options.device)
        if isinstance(model, RecurrentAttentionModel):
            loss = sum(hybrid_loss(found, labels))
        else:
            loss = F.cross_entropy(found, labels)
        return training.descend(loss, **parts)

    return training.train(
        name,
        step,
        size.steps,
        parts,
        checkpoint=checkpoint,
        seed=options.seed,
        resume=options.resume,
    )


@torch.no_grad()
def evaluate(model: nn.Module, test: Canvases, device: str) -> dict[str, Any]:
    """Return the error, the cost per image, and the share of glimpses on the digit."""
    with FlopCounterMode(display=False) as counter:
        model(test.images[:1].to(device))
    parts = [model(images.to(device)) for images in test.images.split(1000)]
    found: dict[str, Any] = {}
    if isinstance(model, RecurrentAttentionModel):
        locations = torch.cat([part.locations for part in parts]).cpu()
        found["on_the_digit"] = on_the_digit(locations, test).double().mean(0).tolist()
        parts = [part.logits for part in parts]
    said = torch.cat(parts).argmax(-1).cpu()
    return found | {
        "error": (said != test.labels).double().mean().item(),
        "parameters": parameters(model),
        "operations": counter.get_total_flops(),
    }


def on_the_digit(locations: Tensor, canvases: Canvases) -> Tensor:
    """Return bool (B, T): True if a glimpse's centre lies in the 8 x 8 pixels of the digit."""
    pixels = (locations + 1) / 2 * canvases.images.shape[-1]
    inside = pixels - canvases.corners.flip(-1).unsqueeze(1)  # x is along a row
    return ((inside >= 0) & (inside < SIDE)).all(-1)


def row(name: str, found: dict[str, Any]) -> list[str]:
    on = f"{100 * found['on_the_digit'][-1]:.1f} %" if "on_the_digit" in found else "–"
    size, cost = f"{found['parameters']:,}", f"{found['operations'] / 1e6:.1f} M"
    return [name, size, cost, f"{100 * found['error']:.1f} %", on, f"{found['seconds'] / 60:.1f}"]


@torch.no_grad()
def picture(model: RecurrentAttentionModel, test: Canvases, device: str) -> Figure:
    """Draw the paths over the first test canvases."""
    found = model(test.images[:SHOWN].to(device))
    figure = Figure((12, 6.5), layout="constrained")
    axes = figure.subplots(2, SHOWN // 2).flat
    said = found.logits.argmax(-1).tolist()
    for at, ax in enumerate(axes):
        plot_glimpses(
            test.images[at, 0],
            found.locations[at].cpu(),
            model.windows[:1],
            ax=ax,
            title=f"{test.labels[at]}, read as {said[at]}",
        )
    return figure


if __name__ == "__main__":
    sys.exit(main())
