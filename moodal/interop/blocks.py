"""Cases of blocks with batch norm: name maps of their parts, loading, outputs with stored and with batch statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from moodal.core.errors import DataError, did_you_mean
from moodal.interop.official import Piece, load_pieces
from moodal.interop.parity import Case, Quantity, compare

#: How many batches a norm has seen: bookkeeping, in no result.
COUNTER = "num_batches_tracked"


def linear_pieces(theirs: str, ours: str, *, convolution: bool = False) -> list[Piece]:
    """A linear map; ``convolution``: in the official code it is a convolution of width 1 over rows."""
    view: Callable[[Tensor], Tensor] = (lambda tensor: tensor.unsqueeze(-1)) if convolution else (lambda tensor: tensor)
    return [Piece(f"{theirs}.weight", f"{ours}.weight", view), Piece(f"{theirs}.bias", f"{ours}.bias")]


def norm_pieces(theirs: str, ours: str) -> list[Piece]:
    """A batch norm with its running statistics."""
    return [Piece(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias", "running_mean", "running_var")]


def compare_block(
    case: Case, block: nn.Module, pieces: Sequence[Piece], run: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
) -> list[Quantity]:
    """Load the case's weights into ``block`` and compare every output of ``run``, those named "train." in training mode.

    Raises ``DataError`` for an output that ``run`` does not give.
    """
    given = {name: tensor for name, tensor in case.state.items() if not name.endswith(COUNTER)}
    own = block.state_dict()
    kept = {name: tensor for name, tensor in own.items() if not name.endswith(COUNTER)}
    block.load_state_dict(own | load_pieces(pieces, given, kept))
    block.eval()
    ours = run(case.inputs)
    block.train()  # last: batch statistics move the running ones
    ours |= {f"train.{name}": tensor for name, tensor in run(case.inputs).items()}
    for name in case.outputs:
        if name not in ours:
            raise DataError(f"The case stores the output '{name}', which is not compared{did_you_mean(name, ours)}.")
    return [compare(name, ours[name], theirs, case.facts["tolerance"]) for name, theirs in case.outputs.items()]
