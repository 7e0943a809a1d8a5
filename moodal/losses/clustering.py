"""Self-supervised shifted clustering: each clip is held near a prototype that moves a little between epochs.

Shapes: N rows, D width, P prototypes. After Luo et al., arXiv 2112.01368, who name the parts in the abstract only; the
algorithm here is our reconstruction (k-means pseudo-labels, prototypes matched between epochs and moved part of the way).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from torch import Tensor, nn

from moodal.core.errors import check

ITERATIONS = 20


class ShiftedClustering(nn.Module):
    """The bank of all training rows, the prototypes and every row's pseudo-label, all as buffers.

    ``shift``: 0 freezes the prototypes after the first clustering, 1 takes the new centres as they are.
    Raises ``MoodalError`` if there are fewer training rows than prototypes.
    """

    def __init__(
        self, rows: int, width: int, *, prototypes: int = 10, shift: float = 0.5, temperature: float = 0.1
    ) -> None:
        super().__init__()
        check(
            1 <= prototypes <= rows,
            f"There are {prototypes} prototypes for {rows} training clips; give no more prototypes than clips.",
        )
        check(0 <= shift <= 1, f"shift is {shift}; it lies from 0 to 1.")
        check(temperature > 0, f"temperature is {temperature}; it must be positive.")
        self.shift, self.temperature = shift, temperature
        self.bank: Tensor
        self.prototypes: Tensor
        self.labels: Tensor
        self.clustered: Tensor
        self.register_buffer("bank", torch.zeros(rows, width))
        self.register_buffer("prototypes", torch.zeros(prototypes, width))
        self.register_buffer("labels", torch.zeros(rows, dtype=torch.int64))
        self.register_buffer("clustered", torch.tensor(-1))  # the epoch the prototypes belong to

    @torch.no_grad()
    def cluster(self, epoch: int) -> None:
        """Cluster the bank anew, once per epoch; call it again and nothing happens."""
        if int(self.clustered) == epoch:
            return
        first = int(self.clustered) < 0
        found = self._centres(None if first else self.prototypes, epoch)
        if not first:
            found = found[_matches(self.prototypes, found)]
            found = (1 - self.shift) * self.prototypes + self.shift * found
        self.prototypes.copy_(F.normalize(found, dim=-1))
        self.labels.copy_((self.bank @ self.prototypes.T).argmax(dim=1))
        self.clustered.fill_(epoch)

    def forward(self, features: Tensor, index: Tensor) -> Tensor:
        """Cross-entropy of softmax(p_j . f_n / temperature) with the pseudo-labels of the rows ``index``.

        ``features``: (N, D), normalised here; no gradient reaches the prototypes.
        """
        logits = F.normalize(features, dim=-1) @ self.prototypes.T / self.temperature
        return F.cross_entropy(logits, self.labels[index])

    @torch.no_grad()
    def remember(self, features: Tensor, index: Tensor) -> None:
        """Put the rows ``index`` into the bank, normalised."""
        self.bank[index] = F.normalize(features.detach(), dim=-1).to(self.bank.dtype)

    def _centres(self, start: Tensor | None, epoch: int) -> Tensor:
        """K-means over the bank; an empty cluster begins again at the row furthest from its centre."""
        count = len(self.prototypes)
        begin = "k-means++" if start is None else start.cpu().double().numpy()
        kmeans = KMeans(count, init=begin, n_init=1, max_iter=ITERATIONS, random_state=epoch)
        centres = kmeans.fit(self.bank.cpu().double().numpy()).cluster_centers_
        return torch.from_numpy(centres).to(self.bank)


def _matches(old: Tensor, new: Tensor) -> Tensor:
    """(P,) for each old prototype the new centre that continues it: one to one, nearest in sum."""
    _, columns = linear_sum_assignment(torch.cdist(old, new).cpu().numpy())
    return torch.from_numpy(columns).to(old.device)
