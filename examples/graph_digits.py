"""Read handwritten digits with ten labels per class, by attention over their nearest neighbours.

    python -m examples.graph_digits

All 1797 digits of scikit-learn are the nodes of a graph, each joined to its nearest neighbours in
pixels, labelled or not. GATv2 (Brody et al., 2105.14491) learns from 100 labels and reads all the
others (as Kipf and Welling, 1609.02907, do with papers). Beside it: the same network with equal
weights for all neighbours, a plain network of the same width that sees no graph, and the nearest
labelled digit. Every row is over several draws of the labels. No test label decides anything.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnkernels import Edges, prepare_edges
from attnkernels.extras import needs
from attnkernels.nn import GraphAttention
from examples import results, training
from examples.options import parser

with needs("examples"):
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure
    from sklearn.datasets import load_digits
    from sklearn.manifold import TSNE
    from sklearn.neighbors import kneighbors_graph

CLASSES, PER_CLASS = 10, 10
DROPOUT, LEARNING_RATE, DECAY = 0.5, 5e-3, 5e-4
SHOWN = 1500  # the edges with the largest weights, in the figure


class Size(NamedTuple):
    """The settings that --tiny and --full change."""

    steps: int
    draws: int
    neighbours: int = 10
    heads: int = 8
    channels: int = 16


TINY = Size(steps=3, draws=2)
DEFAULT = Size(steps=200, draws=10)
FULL = Size(steps=400, draws=50)


class Data(NamedTuple):
    """The nodes: pixels (N, 64), labels (N,), and the edges between neighbours."""

    pixels: Tensor
    labels: Tensor
    edges: Edges


class GraphNet(nn.Module):
    """Two layers of attention over neighbours; not `learned`: of equal weights."""

    def __init__(self, size: Size, learned: bool = True) -> None:
        super().__init__()
        self.first = GraphAttention(64, size.channels, size.heads, dropout=DROPOUT)
        width = size.channels * size.heads
        self.second = GraphAttention(width, CLASSES, dropout=DROPOUT)
        if not learned:
            for layer in (self.first, self.second):
                nn.init.zeros_(layer.weight).requires_grad_(False)

    def forward(self, data: Data) -> Tensor:
        x = F.dropout(data.pixels, DROPOUT, self.training)
        x = F.elu(self.first(x, data.edges))
        return self.second(F.dropout(x, DROPOUT, self.training), data.edges)


class PlainNet(nn.Module):
    """Two layers of the same width that see one digit."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.channels * size.heads
        self.first, self.second = nn.Linear(64, width), nn.Linear(width, CLASSES)

    def forward(self, data: Data) -> Tensor:
        x = F.elu(self.first(F.dropout(data.pixels, DROPOUT, self.training)))
        return self.second(F.dropout(x, DROPOUT, self.training))


NETS = {
    "GATv2": GraphNet,
    "mean of neighbours": lambda size: GraphNet(size, learned=False),
    "plain network": PlainNet,
}


@training.interruptible
def main(arguments: list[str] | None = None) -> int:
    options = parser("graph_digits", __doc__.splitlines()[0]).parse_args(arguments)
    size = TINY if options.tiny else FULL if options.full else DEFAULT
    data = load(size.neighbours, options.device)
    errors: dict[str, list[float]] = {name: [] for name in (*NETS, "nearest labelled digit")}
    kept: nn.Module | None = None
    for draw in range(size.draws):
        seed = options.seed + draw
        labelled = draw_labels(data.labels, seed)
        for name, make in NETS.items():
            torch.manual_seed(seed)
            model = make(size).to(options.device)
            train(f"{name}, draw {draw + 1}", model, data, labelled, size, options, seed)
            errors[name].append(error(model.eval()(data).argmax(-1), data, labelled))
            kept = model if name == "GATv2" and draw == 0 else kept
        errors["nearest labelled digit"].append(error(nearest(data, labelled), data, labelled))
    assert isinstance(kept, GraphNet)
    weights, figure = picture(kept, data, options.seed)
    same = same_class(data)
    within = {
        "edges": same.float().mean().item(),
        "attention": (weights * same).sum().item() / weights.sum().item(),
    }
    results.write(
        options.out,
        options=vars(options),
        columns=("net", "error", "from", "to"),
        rows=[
            [name, *(f"{100 * x:.1f} %" for x in (statistics.mean(all_), min(all_), max(all_)))]
            for name, all_ in errors.items()
        ],
        figures={"graph": figure},
        record={
            "size": size._asdict(),
            "nodes": len(data.labels),
            "num_edges": data.edges.num_edges,
            "errors": errors,
            "within_a_class": within,
        },
    )
    print(
        f"{100 * within['edges']:.1f} % of the edges and {100 * within['attention']:.1f} % of the"
        " attention are within a class"
    )
    return 0


def load(neighbours: int, device: str) -> Data:
    """Return all digits; two are joined, both ways, if one is a nearest neighbour of the other."""
    found = load_digits()
    pixels = torch.tensor(found.data / 16, dtype=torch.float32)
    near = kneighbors_graph(found.data, neighbours)
    source, target = near.maximum(near.T).nonzero()
    index = torch.stack([torch.from_numpy(ends).long() for ends in (source, target)])
    nodes = len(pixels)
    labels = torch.tensor(found.target, dtype=torch.int64, device=device)
    return Data(pixels.to(device), labels, prepare_edges(index, nodes, nodes).to(device))


def draw_labels(labels: Tensor, seed: int) -> Tensor:
    """Return PER_CLASS random nodes of each class."""
    generator = torch.Generator().manual_seed(seed)
    nodes = []
    for digit in range(CLASSES):
        of_class = (labels == digit).nonzero().squeeze(1)
        chosen = torch.randperm(len(of_class), generator=generator)[:PER_CLASS]
        nodes.append(of_class[chosen.to(labels.device)])
    return torch.cat(nodes)


def train(
    name: str, model: nn.Module, data: Data, labelled: Tensor, size: Size, options: Any, seed: int
) -> None:
    """Train on the labels of the nodes `labelled`."""
    learning = [each for each in model.parameters() if each.requires_grad]
    optimizer = torch.optim.Adam(learning, LEARNING_RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / size.steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}

    def step(number: int) -> float:
        loss = F.cross_entropy(model(data)[labelled], data.labels[labelled])
        return training.descend(loss, **parts)

    training.train(
        name,
        step,
        size.steps,
        parts,
        checkpoint=Path(options.out) / f"{name.replace(' ', '_').replace(',', '')}.pt",
        seed=seed,
        resume=options.resume,
    )


def nearest(data: Data, labelled: Tensor) -> Tensor:
    """Return the label of the labelled digit nearest to each digit."""
    return data.labels[labelled][torch.cdist(data.pixels, data.pixels[labelled]).argmin(1)]


def error(said: Tensor, data: Data, labelled: Tensor) -> float:
    """Return the share of wrong labels among the nodes that were not labelled."""
    others = torch.ones_like(data.labels, dtype=torch.bool).index_fill(0, labelled, False)
    return (said != data.labels)[others].double().mean().item()


def same_class(data: Data) -> Tensor:
    """Return bool (E,): True for the edges between digits of one class."""
    source, target = data.edges.edge_index()
    return data.labels[source] == data.labels[target]


@torch.no_grad()
def picture(model: GraphNet, data: Data, seed: int) -> tuple[Tensor, Figure]:
    """Return the weights of the first layer, a mean over heads, and a drawing of the strongest."""
    _, (index, weights) = model.first(data.pixels, data.edges, return_weights=True)
    count = data.edges.num_edges  # self-loops follow
    weights, ends = weights[:count].mean(1).cpu(), index[:, :count].t().cpu()
    places = torch.from_numpy(TSNE(random_state=seed, init="pca").fit_transform(data.pixels.cpu()))
    strongest = weights.topk(min(SHOWN, count)).indices
    within = same_class(data).cpu()[strongest]
    figure = Figure((9, 8), layout="constrained")
    axes = figure.subplots()
    for of, color, label in ((within, "0.35", "within a class"), (~within, "red", "between two")):
        chosen = strongest[of]
        widths = (1.5 * weights[chosen] / weights.max()).tolist()
        lines = LineCollection(places[ends[chosen]].tolist(), linewidths=widths, colors=color)
        lines.set_label(f"{len(chosen):,} edges {label}")
        axes.add_collection(lines)
    labels = data.labels.cpu()
    axes.scatter(*places.t(), c=labels, s=9, cmap="tab10", zorder=2)
    for digit in range(CLASSES):
        x, y = places[labels == digit].median(0).values.tolist()
        axes.text(x, y, str(digit), fontsize=18, weight="bold", ha="center", va="center")
    axes.set_title(f"The {len(strongest):,} edges with the largest weights of the first layer")
    axes.legend(loc="lower right")
    axes.set_axis_off()
    return weights, figure


if __name__ == "__main__":
    sys.exit(main())
