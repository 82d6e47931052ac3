"""Class-wise statistics of activations that stream: counts, means, scatters and cross moments.

For every class c and site a, from rows x (one per kept token):

    mean_a = Σ x / n        scatter_a = Σ (x − mean_a)(x − mean_a)ᵀ        cross_ab = Σ (x_a − mean_a)(x_b − mean_b)ᵀ

Rows are float32 and accumulate in float64. Blocks and partial results merge by the exact update of Chan, Golub and
LeVeque (1979): scatter += scatter' + δ δᵀ n n'/(n + n') with δ the difference of the means, so batches, files and
ranks may be merged in any order. Memory does not grow with the number of rows.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from steerlab.activations import _moments_file
from steerlab.activations._class_sums import ClassSums, Pair
from steerlab.activations._provenance import Streamed
from steerlab.activations._shown import moments_html, moments_text
from steerlab.errors import SteerlabError
from steerlab.models import Site
from steerlab.models.laws import exact
from steerlab.models.memory import readable

Order: TypeAlias = Literal["mean", "scatter", "cross"]
Label: TypeAlias = Hashable

# Rows are collected up to this many bytes or rows, so that matrix products are large enough to be fast.
_BLOCK_BYTES, _BLOCK_ROWS = 64 * 2**20, 256
_log = logging.getLogger(__name__)


class Moments(Streamed):
    """Streaming statistics of states by class and site.

    Args:
        order: "mean" keeps counts, means and mean norms; "scatter" adds the centred second moment of ``sites``;
            "cross" adds the centred cross moment of the site pairs in ``cross`` (and the scatter of their sites).
        sites: the sites that get a scatter; None means every site ("cross": every site of a pair). Other sites
            that are captured still get their means.
        cross: site pairs (a, b) for order "cross".
        classes: the classes that get second moments; None means every class. Rows of the others still count
            and get their means.
        memory_budget: bytes that the second moments may take; more is refused before anything is allocated.

    `model_name`, `fingerprint`, `positions` and `prompts_hash` say where the states come from, as far as `capture` and
    merging know.

    Raises:
        SteerlabError: for an unknown order, or sites and pairs that the order has no use for.
    """

    def __init__(
        self,
        order: Order = "mean",
        *,
        sites: Iterable[Site] | None = None,
        cross: Iterable[Pair] = (),
        classes: Iterable[Label] | None = None,
        memory_budget: int = 4 * 2**30,
    ) -> None:
        self.order: Order = order
        self.pairs: tuple[Pair, ...] = tuple((a, b) for a, b in cross)
        self.memory_budget = memory_budget
        super().__init__()
        self._scatter_sites = None if sites is None else frozenset(sites)
        self._second_classes = None if classes is None else frozenset(map(plain_label, classes))
        self._widths: dict[Site, int] = {}
        self._classes: dict[Label, ClassSums] = {}
        self._pending: list[tuple[dict[Site, Tensor], list[Label]]] = []
        self._check_order()

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites seen so far, in the order of the forward pass."""
        return tuple(self._widths)

    @property
    def labels(self) -> tuple[Label, ...]:
        """The classes seen so far, in order of appearance."""
        self._flush()
        return tuple(self._classes)

    def __repr__(self) -> str:
        return moments_text(self)

    def _repr_html_(self) -> str:
        return moments_html(self)

    def __copy__(self) -> Moments:
        return copy.deepcopy(self)  # a copy takes rows of its own

    # ---------------------------------------------------------------------------------------------------- filling

    def memory_needed(self, widths: Mapping[Site, int], classes: int) -> int:
        """Bytes of the second moments at these widths: 8 d² a class and site, 8 d_a d_b a class and pair."""
        if self._second_classes is not None:
            classes = min(classes, len(self._second_classes))
        scatters = sum(widths[site] ** 2 for site in widths if self._keeps_scatter(site))
        crosses = sum(widths[a] * widths[b] for a, b in self.pairs)
        return 8 * classes * (scatters + crosses)

    def reserve(self, widths: Mapping[Site, int], classes: int) -> None:
        """Fix the sites and their widths, and hold the memory they need against the budget.

        Raises:
            SteerlabError: when the sites differ from those seen before, when a named site or pair is not among
                them, or when the second moments need more than ``memory_budget`` bytes.
        """
        if self._widths and dict(widths) != self._widths:
            raise SteerlabError(
                f"These moments hold {_names(self._widths)}; they cannot take {_names(widths)}. "
                "Use one Moments object for each set of sites."
            )
        wanted = {*(self._scatter_sites or ()), *(site for pair in self.pairs for site in pair)}
        if missing := [site for site in sorted(wanted) if site not in widths]:
            raise SteerlabError(
                f"Moments were asked for {_names(missing)}, which the states do not include. "
                "Add these sites to the ones you capture."
            )
        needed = self.memory_needed(widths, max(classes, len(self._classes)))
        if needed > self.memory_budget:
            raise SteerlabError(
                f"Second moments of {len(widths)} sites and {classes} classes need {readable(needed)}, more than the "
                f"budget of {readable(self.memory_budget)}. Name fewer sites in Moments(sites=...), or raise "
                "memory_budget."
            )
        if needed and not self._widths:
            _log.info("second moments of %d sites, %d classes: %s", len(widths), classes, readable(needed))
        self._widths = dict(widths)

    def update(
        self, states: Mapping[Site, Float[Tensor, "row width"]], labels: Sequence[Label] | None = None
    ) -> None:
        """Take rows of every site; ``labels[i]`` is the class of row i (None: one class named None).

        Raises:
            SteerlabError: sites with different numbers of rows, or another number of labels.
        """
        rows = {len(state) for state in states.values()}
        if len(rows) != 1:
            raise SteerlabError(f"Every site needs the same number of rows; got {sorted(rows)}.")
        n = rows.pop()
        classes: list[Label] = [None] * n if labels is None else [plain_label(label) for label in labels]
        if len(classes) != n:
            raise SteerlabError(f"{n} rows came with {len(classes)} labels; give one label a row.")
        widths = {site: state.shape[-1] for site, state in states.items()}
        if widths != self._widths or not self._classes.keys() >= set(classes):
            self.reserve(widths, len({*self._classes, *classes}))
        if n:
            self._pending.append((dict(states), classes))
            self._flush_if_full()

    def merge(self, other: Moments) -> Moments:
        """Add another object's rows to this one's, exactly, and return self.

        Raises:
            SteerlabError: moments of another order, other sites, pairs or classes, or of another model.
        """
        if self._kept() != other._kept():
            raise SteerlabError("Moments of different order, sites, pairs or classes cannot be merged.")
        if None not in (self.fingerprint, other.fingerprint) and self.fingerprint != other.fingerprint:
            raise SteerlabError(
                f"Moments of {self.model_name} and of {other.model_name} cannot be merged: "
                "these are states of different models."
            )
        self._flush()
        other._flush()
        if other._widths:
            self.reserve(other._widths, len({*self._classes, *other._classes}))
        for label, sums in other._classes.items():
            self._class(label).merge(sums)
        self._join(other)
        return self

    def __add__(self, other: Moments) -> Moments:
        """A new object holding the rows of both."""
        total = Moments(
            self.order,
            sites=self._scatter_sites,
            cross=self.pairs,
            classes=self._second_classes,
            memory_budget=self.memory_budget,
        )
        return total.merge(self).merge(other)

    # ---------------------------------------------------------------------------------------------------- reading

    def count(self, label: Label = None) -> int:
        """Rows of a class; None counts all."""
        return sum(sums.count for sums in self._pick(label))

    def mean(self, site: Site, label: Label = None) -> Float[Tensor, " width"]:
        """Mean state of a class at a site, float64 on the CPU; None pools all classes."""
        return self._average([_entry(sums.mean, site, "mean") for sums in self._pick(label)], label)

    def norm(self, site: Site, label: Label = None) -> float:
        """Mean euclidean norm of the states of a class at a site; None pools all classes."""
        return float(self._average([_entry(sums.norm, site, "norm") for sums in self._pick(label)], label))

    def scatter(self, site: Site, label: Label = None) -> Float[Tensor, "width width"]:
        """Σ (x − mean)(x − mean)ᵀ of a class, float64 on the CPU; None: of all rows about the grand mean."""
        return self._second("scatter", site, (site, site), label)

    def cross(self, a: Site, b: Site, label: Label = None) -> Float[Tensor, "width_a width_b"]:
        """Σ (x_a − mean_a)(x_b − mean_b)ᵀ of a class, float64 on the CPU; None: about the grand means."""
        return self._second("cross", (a, b), (a, b), label)

    def within_scatter(self, site: Site) -> Float[Tensor, "width width"]:
        """The sum over the classes of each one's scatter about its own mean, float64 on the CPU."""
        return functools.reduce(torch.add, (self.scatter(site, label) for label in self.labels))

    def covariance(self, site: Site, label: Label = None, *, ddof: int = 1) -> Float[Tensor, "width width"]:
        """``scatter / (count − ddof)``.

        Raises:
            SteerlabError: no more rows than `ddof`.
        """
        n = self.count(label) - ddof
        if n <= 0:
            raise SteerlabError(f"A covariance with ddof={ddof} needs more than {ddof} rows.")
        return self.scatter(site, label) / n

    def has_scatter(self, site: Site, label: Label = None) -> bool:
        """True when the second moment of this site is kept, for a class or (None) for every class seen."""
        classes = self.labels if label is None else [label]
        return site in self._widths and self._keeps_scatter(site) and all(map(self._is_second, classes))

    # ---------------------------------------------------------------------------------------------------- files

    def save(self, path: str | Path) -> None:
        """Write one safetensors file; labels must be strings, numbers, booleans or None.

        Raises:
            SteerlabError: a label that JSON cannot hold, or a place that cannot be written.
        """
        self._flush()
        _moments_file.require_storable((*self._classes, *(self._second_classes or ())))
        header = {
            "order": self.order,
            "sites": [[str(site), width] for site, width in self._widths.items()],
            "scatter_sites": None if self._scatter_sites is None else sorted(map(str, self._scatter_sites)),
            "pairs": [[str(a), str(b)] for a, b in self.pairs],
            "second_classes": None if self._second_classes is None else list(self._second_classes),
            "classes": [[label, sums.count] for label, sums in self._classes.items()],
            "model_name": self.model_name,
            "fingerprint": self.fingerprint,
            "positions": self.positions,
            "prompts_hash": self.prompts_hash,
        }
        tensors: dict[str, Tensor] = {}
        for i, sums in enumerate(self._classes.values()):
            tensors |= {f"{i}/{key}": value.cpu() for key, value in sums.tensors().items()}
        _moments_file.write(Path(path), header, tensors)

    @classmethod
    def load(cls, path: str | Path, *, memory_budget: int = 4 * 2**30) -> Moments:
        """Read a file that :meth:`save` wrote.

        Raises:
            SteerlabError: when the file is missing, no safetensors, of another kind or version, or damaged.
        """
        return cls._from_parts(*_moments_file.read(Path(path)), memory_budget)

    @classmethod
    def _from_parts(cls, header: dict[str, Any], tensors: dict[str, Tensor], memory_budget: int) -> Moments:
        scatter_sites = header["scatter_sites"]
        moments = cls(
            header["order"],
            sites=None if scatter_sites is None else [Site.parse(text) for text in scatter_sites],
            cross=[(Site.parse(a), Site.parse(b)) for a, b in header["pairs"]],
            classes=header.get("second_classes"),
            memory_budget=memory_budget,
        )
        moments.model_name, moments.fingerprint = header["model_name"], header["fingerprint"]
        moments._take(header.get("positions", ""), header.get("prompts_hash", ""))
        widths = {Site.parse(text): width for text, width in header["sites"]}
        if widths:
            moments.reserve(widths, len(header["classes"]))
        for i, (label, count) in enumerate(header["classes"]):
            sums = moments._classes[label] = ClassSums(count)
            for name, value in tensors.items():
                owner, _, key = name.partition("/")
                if owner == str(i):
                    sums.put(key, value)
        return moments

    # ---------------------------------------------------------------------------------------------------- inside

    def _check_order(self) -> None:
        if self.order not in get_args(Order):
            raise SteerlabError(
                f"Moments have no order {self.order!r}; choose from {', '.join(get_args(Order))}."
            )
        if self.order == "mean" and (self._scatter_sites, self._second_classes) != (None, None):
            raise SteerlabError(
                "Moments(sites=..., classes=...) name sites and classes of second moments; "
                'use order="scatter" with them.'
            )
        if bool(self.pairs) != (self.order == "cross"):
            raise SteerlabError(
                'Moments(cross=[(a, b), ...]) and order="cross" go together; give both or neither.'
            )

    def _keeps_scatter(self, site: Site) -> bool:
        if self.order == "mean":
            return False
        if self._scatter_sites is not None:
            return site in self._scatter_sites
        return self.order == "scatter" or any(site in pair for pair in self.pairs)

    def _is_second(self, label: Label) -> bool:
        return self._second_classes is None or label in self._second_classes

    def _kept(self) -> tuple[Any, ...]:
        return self.order, self.pairs, self._scatter_sites, self._second_classes

    def _class(self, label: Label) -> ClassSums:
        return self._classes.setdefault(label, ClassSums())

    def _pick(self, label: Label) -> list[ClassSums]:
        """The sums of one class, or those of all classes for the label None."""
        self._flush()
        if not self._classes:
            raise SteerlabError("These moments hold no rows yet; capture or update first.")
        label = plain_label(label)
        if label is None:
            return list(self._classes.values())
        if label not in self._classes:
            raise SteerlabError(f"No rows of class {label!r}; there are {list(self._classes)}.")
        return [self._classes[label]]

    def _average(self, values: list[Tensor], label: Label) -> Tensor:
        """Mean of the classes' values weighted by their counts."""
        counts = [sums.count for sums in self._pick(label)]
        return sum(
            (value.cpu() * (n / sum(counts)) for value, n in zip(values, counts, strict=True)),
            start=torch.zeros((), dtype=torch.float64),
        )

    def _second(self, kind: str, key: Site | Pair, ends: Pair, label: Label) -> Tensor:
        """A second moment; pooled over classes it gains what lies between the class means."""
        classes = self._pick(label)
        total = functools.reduce(torch.add, (_entry(getattr(c, kind), key, kind).cpu() for c in classes))
        if len(classes) == 1:
            return total.clone()
        a, b = (
            torch.stack([_entry(c.mean, end, "mean").cpu() for c in classes]) - self.mean(end) for end in ends
        )
        counts = torch.tensor([c.count for c in classes], dtype=torch.float64)
        return total + (a * counts[:, None]).T @ b

    def _flush_if_full(self) -> None:
        rows = sum(len(classes) for _, classes in self._pending)
        if rows >= _BLOCK_ROWS or 4 * rows * sum(self._widths.values()) >= _BLOCK_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Turn the waiting rows into sums, one matrix product a class and site."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        labels = [label for _, classes in pending for label in classes]
        rows_of: dict[Label, list[int]] = {}
        for row, label in enumerate(labels):
            rows_of.setdefault(label, []).append(row)
        blocks = {site: exact(torch.cat([states[site] for states, _ in pending])) for site in self._widths}
        kept = {site for site in self._widths if self._keeps_scatter(site)}
        for label, rows in rows_of.items():
            index = torch.tensor(rows)
            chosen = {site: block[index.to(block.device)] for site, block in blocks.items()}
            second = (kept, self.pairs) if self._is_second(label) else ((), ())
            self._class(label).add(chosen, len(rows), *second)


def plain_label(label: Label) -> Label:
    """A label as a plain Python value: numpy and torch scalars become bool, int or float."""
    item = getattr(label, "item", None)
    return item() if callable(item) else label


def _entry(store: Mapping[Any, Tensor], key: Site | Pair, what: str) -> Tensor:
    if key not in store:
        name = f"({key[0]}, {key[1]})" if isinstance(key, tuple) else str(key)
        kept = _names(store) if store else "nothing of the kind"
        raise SteerlabError(f"No {what} of {name} is kept; there is {kept}.")
    return store[key]


def _names(sites: Iterable[Any]) -> str:
    return ", ".join(str(site) if isinstance(site, Site) else f"({site[0]}, {site[1]})" for site in sites)
