"""Draw attention: each function takes plain arrays and returns a matplotlib `Figure`.

Save one with ``figure.savefig("a.png")`` or ``"a.svg"``. A notebook displays it directly.
"""

from ..extras import needs

with needs("viz"):
    from .alignment import plot_alignment
    from .cost import plot_cost
    from .embeddings import plot_embeddings
    from .images import plot_glimpses, plot_image_attention

__all__ = [
    "plot_alignment",
    "plot_cost",
    "plot_embeddings",
    "plot_glimpses",
    "plot_image_attention",
]
