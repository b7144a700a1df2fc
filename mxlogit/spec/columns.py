"""Names of the columns of long frames, by role."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mxlogit.errors import SpecificationError

# Roles that need not have a column.
_OPTIONAL_ROLES = ("availability", "weights", "cluster")
# Roles whose column cannot have another role; a decision maker may be a situation (one choice each) or a cluster.
_OWN_COLUMN = ("alternative", "choice", "availability", "weights")


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a long frame, by role.

    Raises
    ------
    SpecificationError
        If a name is not a string, or a column has two incompatible roles.
    """

    decision_maker: str
    situation: str
    alternative: str
    choice: str
    availability: str | None = None
    weights: str | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        roles = {role.name: getattr(self, role.name) for role in fields(self)}
        for role, name in roles.items():
            if not (isinstance(name, str) or (name is None and role in _OPTIONAL_ROLES)):
                raise SpecificationError(
                    f"{role} must be the name of a column (a string); got {name!r}. Rename columns whose names are not "
                    "strings: frame.rename(columns=str)."
                )
        for role in _OWN_COLUMN:
            others = [other for other, name in roles.items() if name == roles[role] and other != role]
            if others and roles[role] is not None:
                raise SpecificationError(f"column {roles[role]!r} cannot be both {role} and {others[0]}.")

    @property
    def keys(self) -> tuple[str, str, str]:
        """The three columns that identify a row."""
        return self.decision_maker, self.situation, self.alternative

    def role(self, name: str) -> str | None:
        """First role of a column; None if it has none."""
        return next((role.name for role in fields(self) if getattr(self, role.name) == name), None)
