"""Mixtures: classes of decision makers with tastes of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral

from mxlogit.errors import SpecificationError, check_flag, check_whole
from mxlogit.spec.names import check_names

# Families of which a class may have a taste: a map of the latent normal alone, so that a spread of zero is a value.
CLASS_FAMILIES = ("normal", "lognormal", "negative_lognormal")


@dataclass(frozen=True)
class Mixture:
    r"""Classes of decision makers: the random coefficients of each have a distribution of their own.

    Person n belongs to class c with probability :math:`\pi_c(z_n) \propto e^{\gamma_c'(1, z_n)}`, with
    :math:`\gamma_1 = 0`. Classes are ordered by their shares, largest first.

    Parameters
    ----------
    classes : int
        Number of classes. One is the plain model.
    spread : None or 0
        None: tastes are normal within classes (or lognormal), each class with covariances of its own. 0: a latent class
        model, all members of a class have the same tastes.
    membership : sequence of str
        Covariates of the decision makers, numbers that are constant within a person, on which the probabilities of the
        classes depend.
    ignored : mapping of int to sequence of str
        Columns whose coefficients are zero in a class, by its number from 1: ``{2: ["time"]}``. Such a class keeps its
        number.
    indifferent : bool
        Whether all coefficients are zero in the last class: people who answer at random.

    References
    ----------
    Kamakura and Russell (1989), Journal of Marketing Research 26. Greene and Hensher (2003), Transportation Research B
    37, doi 10.1016/S0191-2615(02)00046-2. Train (2009), Discrete Choice Methods with Simulation, chapter 14.
    """

    classes: int = 2
    spread: int | None = None
    membership: Sequence[str] = ()
    ignored: Mapping[int, Sequence[str]] = field(default_factory=dict)
    indifferent: bool = False

    def check(self) -> Mixture:
        """Return the mixture with a tuple of covariates.

        Raises
        ------
        SpecificationError
            If a setting is invalid.
        """
        check_whole("Mixture(classes=...)", self.classes, 1)
        check_flag("Mixture(indifferent=...)", self.indifferent)
        if self.spread is not None and (isinstance(self.spread, bool) or self.spread != 0):
            raise SpecificationError(
                "Mixture(spread=...) must be None (tastes are spread within classes) or 0 (they are the same); got "
                f"{self.spread!r}."
            )
        covariates = check_names("Mixture(membership=...)", self.membership)
        spread = None if self.spread is None else 0
        return Mixture(int(self.classes), spread, covariates, self._check_ignored(), bool(self.indifferent))

    def _check_ignored(self) -> dict[int, tuple[str, ...]]:
        if not isinstance(self.ignored, Mapping):
            raise SpecificationError(
                f"Mixture(ignored=...) must map classes to lists of columns, such as {{2: ['time']}}; "
                f"got {self.ignored!r}."
            )
        for number in self.ignored:
            if isinstance(number, bool) or not isinstance(number, Integral) or not 1 <= number <= self.classes:
                raise SpecificationError(
                    f"Mixture(ignored=...): {number!r} is no class; they are numbered from 1 to {self.classes}."
                )
        return {int(n): check_names(f"Mixture(ignored={{{n}: ...}})", names) for n, names in self.ignored.items()}

    def places_ignored(self, names: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Positions in ``names`` of the columns that each class ignores."""
        found = [
            {i for i, name in enumerate(names) if name in self.ignored.get(number, ())}
            for number in range(1, self.classes + 1)
        ]
        if self.indifferent:
            found[-1] = set(range(len(names)))
        return tuple(tuple(sorted(places)) for places in found)
