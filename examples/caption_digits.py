"""Caption scattered digits with soft and hard attention, and check what it points at.

    python -m examples.caption_digits

One to five handwritten digits lie on a canvas; the caption names them from left to right, by their
left edges: "three seven one". Digits of the test canvases are never seen in training. Attention is
on the digit that a word names if the centre of its most attended annotation lies in the 8 x 8
pixels of that digit, without a margin: 4 annotations of 96.

The table has the share of exact captions, over all test canvases and over those with the most
digits; the share of correct words; the share of words whose attention is on their digit, and the
share of its weight that is; and the minutes of training.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attnkernels.extras import needs
from attnkernels.models.show_attend_tell import ConvEncoder, ShowAttendTell
from examples import digits, results, training
from examples.options import parser

with needs("examples"):
    from matplotlib.figure import Figure

    from attnkernels.viz import plot_image_attention

BEGIN, END = 1, 2
WORDS = ("", "<begin>", "<end>", "zero", "one", "two", "three", "four", "five", "six", "seven",
         "eight", "nine")  # fmt: skip
ZERO = WORDS.index("zero")
LEARNING_RATE, WARM_UP, WEIGHT_DECAY, LARGEST_GRADIENT = 2e-3, 50, 1e-2, 5.0
REWARD_WEIGHT = 0.3
EXPECTED_FIRST = 0.25  # of the steps of hard attention, since uniformly drawn places teach little
DOUBLY_STOCHASTIC = 0.02  # small, since six looks cannot cover 96 places evenly without blurring


class Size(NamedTuple):
    """The settings of --tiny and --full: canvas (height, width); most and apart of `scatter`."""

    steps: int
    batch: int = 64
    test: int = 2000
    canvas: tuple[int, int] = (32, 48)
    most: int = 5
    apart: int = 5


TINY = Size(steps=4, batch=4, test=8)
DEFAULT = Size(steps=2000)
FULL = Size(steps=20000, batch=256, test=10000, canvas=(64, 96), most=9)


@training.interruptible
def main(arguments: list[str] | None = None) -> int:
    options = parser("caption_digits", __doc__.splitlines()[0]).parse_args(arguments)
    size = TINY if options.tiny else FULL if options.full else DEFAULT
    train_digits, test_digits = digits.split()
    test = scatter(test_digits, size, torch.Generator().manual_seed(options.seed + 1))
    shown = int((test.counts == test.counts.max()).nonzero()[0])  # the first of the most digits
    rows, figures, record = [], {}, {}
    for kind in ("soft", "hard"):
        model, seconds = trained(kind, train_digits, size, options)
        found = evaluate(model, test, options.device)
        record[kind] = {**found, "seconds": seconds}
        rows.append(row(kind, record[kind]))
        figures[kind] = picture(model, test.images[shown], size.most, options.device)
    longest = f"of {int(test.counts.max())}"
    columns = "attention", "exact", longest, "words", "on the digit", "weight on it", "minutes"
    results.write(
        options.out,
        options=vars(options),
        columns=columns,
        rows=rows,
        figures=figures,
        record={"size": size._asdict(), "models": record},
    )
    return 0


def trained(kind: str, source: digits.Digits, size: Size, options: Any) -> tuple[Any, float]:
    """Return the trained model with this attention, in eval(), and the seconds of its training."""
    torch.manual_seed(options.seed)
    model = ShowAttendTell(
        ConvEncoder(1, 128),
        len(WORDS),
        begin=BEGIN,
        end=END,
        attention=kind,
        doubly_stochastic=DOUBLY_STOCHASTIC,
        reward_weight=REWARD_WEIGHT,
    ).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / WARM_UP, 2 * (1 - step / size.steps))
    )
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def step(number: int) -> float:
        generator = torch.Generator().manual_seed(1_000_003 * (options.seed + 1) + number)
        canvases = scatter(source, size, generator, size.batch)
        images, tokens, lengths = (
            x.to(options.device) for x in (canvases.images, *captions(canvases))
        )
        model.expected_chance = 1.0 if number < EXPECTED_FIRST * size.steps else 0.5
        loss = model.loss(images, tokens, lengths)
        return training.descend(loss, **parts, largest=LARGEST_GRADIENT)

    seconds = training.train(
        f"{kind} attention",
        step,
        size.steps,
        parts,
        checkpoint=Path(options.out) / f"{kind}.pt",
        seed=options.seed,
        resume=options.resume,
    )
    return model.eval(), seconds


def scatter(
    source: digits.Digits, size: Size, generator: torch.Generator, batch: int | None = None
) -> digits.Canvases:
    """Make canvases of this size, by default as many as the test uses."""
    return digits.scatter(
        source,
        size.test if batch is None else batch,
        generator=generator,
        most=size.most,
        size=size.canvas,
        apart=size.apart,
    )


def captions(canvases: digits.Canvases) -> tuple[Tensor, Tensor]:
    """Return tokens (B, most + 2) with begin and end, padded with 0, and their counts (B,)."""
    batch, most = canvases.labels.shape
    tokens = torch.zeros(batch, most + 2, dtype=torch.int64)
    tokens[:, 0] = BEGIN
    tokens[:, 1:-1] = torch.where(canvases.labels < 0, 0, canvases.labels + ZERO)
    tokens[range(batch), canvases.counts + 1] = END
    return tokens, canvases.counts + 2


@torch.no_grad()
def describe(
    model: ShowAttendTell, images: Tensor, most: int, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Caption greedily.

    Returns the words (B, most + 1), filled with end; their weights (B, most + 1, L); and the
    annotation (B, most + 1) that each attended to (with soft attention, the most).
    """
    images = images.to(device)
    said = model.caption(images, max_length=most + 1).tokens[:, 0]
    said = torch.nn.functional.pad(said, (0, most + 1 - said.shape[1]), value=END)
    begin = torch.full_like(said[:, :1], BEGIN)
    _, weights, choice = model(images, torch.cat([begin, said[:, :-1]], 1))
    looked = weights.argmax(-1) if choice is None else choice.positions
    return said.cpu(), weights.cpu(), looked.cpu()


def evaluate(model: ShowAttendTell, canvases: digits.Canvases, device: str) -> dict[str, Any]:
    """Score captions against the canvases, and the attention of words against the digits."""
    most = canvases.labels.shape[1]
    parts = [describe(model, x, most, device) for x in canvases.images.split(500)]
    said, weights, looked = (torch.cat(x) for x in zip(*parts, strict=True))
    tokens, _ = captions(canvases)
    wanted = tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, END)
    exact = (said == wanted).all(1).double()
    there = canvases.labels >= 0
    words = said[:, :-1] != END
    inside = cells_of(canvases) & there.unsqueeze(-1)  # (B, most, L)
    pointed = inside.gather(-1, looked[:, :-1, None]).squeeze(-1)
    mass = (weights[:, :-1] * inside).sum(-1)
    return {
        "exact": exact.mean().item(),
        "exact_by_count": {
            n: exact[canvases.counts == n].mean().item() for n in canvases.counts.unique().tolist()
        },
        "words": (said == wanted)[:, :-1][there].double().mean().item(),
        "pointed": pointed[words].double().mean().item(),
        "mass": mass[words].double().mean().item(),
    }


def cells_of(canvases: digits.Canvases) -> Tensor:
    """Return bool (B, most, L): True if the centre of the annotation lies in the digit's pixels."""
    inside = []
    for axis, pixels in enumerate(canvases.images.shape[-2:]):
        centres = 4 * torch.arange(pixels // 4) + 2
        near = centres - canvases.corners[..., axis, None]
        inside.append((near >= 0) & (near < digits.SIDE))
    rows, columns = inside
    return (rows.unsqueeze(-1) & columns.unsqueeze(-2)).flatten(-2)


def row(kind: str, found: dict[str, Any]) -> list[str]:
    by_count = found["exact_by_count"]
    shares = found["exact"], by_count[max(by_count)], found["words"]
    shares += found["pointed"], found["mass"]
    return [kind, *(f"{100 * share:.1f} %" for share in shares), f"{found['seconds'] / 60:.1f}"]


def picture(model: ShowAttendTell, image: Tensor, most: int, device: str) -> Figure:
    """Draw the attention of each word of a caption, with a cross on a hard choice."""
    said, weights, looked = (x[0] for x in describe(model, image[None], most, device))
    height, width = (pixels // 4 for pixels in image.shape[-2:])
    words = [WORDS[token] for token in said[: int((said != END).sum()) + 1].tolist()]
    n = len(words)
    centres = torch.stack([looked[:n] % width, looked[:n] // width], 1) * 4 + 1.5
    return plot_image_attention(
        image[0],
        weights[:n].unflatten(-1, (height, width)),
        words,
        centres=None if model.decoder.hard is None else centres,
    )


if __name__ == "__main__":
    sys.exit(main())
