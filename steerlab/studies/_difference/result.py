"""The result of the study of differences: its numbers, nulls beside them, and the verdict that they give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from steerlab.record import Record
from steerlab.results import StudyResult, Table
from steerlab.statistics import Estimate, Number
from steerlab.studies._difference.figures import figures
from steerlab.studies._difference.forks import Forks
from steerlab.studies._difference.laws import Moved, Position
from steerlab.studies._difference.steering import Steering
from steerlab.studies._difference.tables import tables

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Verdict: TypeAlias = Literal["narrow topic readable", "generic", "not identified"]
LORA, FLIPS, VECTORS = "random LoRA of equal norm", "signs flipped over texts", "random vector of equal norm"
_SURE = 0.05


class Layer(Record):
    """The average difference at a layer's output.

    shared: what the texts' differences have in common, as a share of the stream's norm. lora: the same of random LoRA
    (mean, least and greatest), None without them. stands_out, alike: see `lens`. words: read of the average difference.
    topic: rank AUC of the topic's words, None without a topic.
    """

    layer: int
    shared: Estimate
    lora: Estimate | None
    stands_out: Number
    alike: Number
    words: tuple[str, ...]
    topic: Estimate | None = None


class Place(Record):
    """The average difference at one place of the texts."""

    layer: int
    place: str
    texts: int
    shared: Estimate
    words: tuple[str, ...]


class Null(Record):
    """What chance makes of the three quantities: mean, least and greatest of its draws, and p of the pair's own value;
    None and NaN where it says nothing of one.

    shared: mean over layers. stands_out: at the layer where it is greatest. alike: at that layer.
    """

    name: str
    shared: Estimate | None
    shared_p: Number
    stands_out: Estimate | None
    stands_out_p: Number
    alike: Estimate | None
    alike_p: Number


class DifferenceResult(StudyResult):
    """Where two models differ on unrelated text.

    texts, tokens: read in each model. shared: mean over layers, over texts. kl: KL(base ‖ post), nats a token. read_at:
    the layer where words stand out most. called, tested: tokens whose probability changed, of how many. itself: largest
    difference of base from itself. missing: parts that were not run, and why.
    """

    study: str = "difference"
    verdict: Verdict
    texts: int
    tokens: int
    shared: Estimate
    stands_out: Number
    alike: Number
    kl: Estimate
    read_at: int
    layers: tuple[Layer, ...]
    places: tuple[Place, ...]
    nulls: tuple[Null, ...]
    positions: tuple[Position, ...]
    promoted: tuple[Moved, ...]
    demoted: tuple[Moved, ...]
    called: int
    tested: int
    forks: Forks
    steering: Steering
    itself: float
    missing: dict[str, str]

    def null(self, name: str) -> Null | None:
        """One of the nulls; None where it was not drawn."""
        return next((null for null in self.nulls if null.name == name), None)

    @property
    def read(self) -> Layer:
        """The layer where words stand out most."""
        return self.layers[self.read_at]

    def tables(self) -> list[Table]:
        """Nulls, layers, places, positions, tokens, forks, steering."""
        return tables(self)

    def figures(self) -> dict[str, Figure]:
        """Difference by layer, by place, laws by position, and the three quantities beside their nulls."""
        return figures(self)


def verdict_of(shared: Estimate, nulls: tuple[Null, ...]) -> Verdict:
    """Not identified, unless the difference is shared beyond every null; narrow where its words are beyond them too."""
    known = [null.shared_p for null in nulls if null.shared is not None]
    if not (shared.low > 0 and known and max(known) <= _SURE):
        return "not identified"
    read = [max(null.stands_out_p, null.alike_p) for null in nulls if null.stands_out is not None]
    narrow = bool(read) and max(read) <= _SURE
    return "narrow topic readable" if narrow else "generic"
