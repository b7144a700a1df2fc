"""Numbers of draws that an error needs and the work allows: the one home of limits of work.

Two numbers decide. The error is that of an estimate, in posterior standard deviations: draws whose effective share is e
leave (1 / e - 1) / draws of its variance, however many people there are, since information grows with them as noise
does. The work is the number of people times draws of a pass, and bounds what is spent for a smaller error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Error of the posterior's means that draws may leave, in posterior standard deviations (Swissmetro, where draws have an
# effective share of .89: 16 of them left errors of .6 in the mean).
ALLOWED_ERROR = 0.001**0.5
# Error of the optimum above which its score is taken from more draws: the root of a two-hundredth.
ALLOWED_ERROR_OF_MODE = 0.005**0.5


@dataclass(frozen=True)
class Budget:
    """Limits of the draws of one computation.

    Attributes
    ----------
    least : int
        Draws per person that are taken in any case.
    most : int
        Draws per person beyond which more help little.
    work : float
        People times draws.
    multiple : int
        Number that draws are a multiple of: antithetic pairs in two halves make four.
    """

    least: int
    most: int
    work: float
    multiple: int = 4

    def draws(self, people: float, wanted: float = math.inf) -> int:
        """Return as many draws per person as are wanted and allowed.

        Parameters
        ----------
        people : float
            Number of people, or of people of usual length (`mxlogit.execution.people.People.load`).
        wanted : float
            Draws that would do; without it, all that are allowed.
        """
        allowed = self.multiple * int(self.work // (self.multiple * max(people, 1.0)))
        allowed = max(self.least, min(self.most, allowed))
        return allowed if wanted > allowed else self.multiple * math.ceil(max(wanted, 1.0) / self.multiple)


def draws_for(error: float, ess: float, people: float, budget: Budget) -> int:
    """Return the draws per person that leave an error.

    Parameters
    ----------
    error : float
        Error of the estimates that is allowed, in posterior standard deviations.
    ess : float
        Effective share of the draws.
    people : float
        Number of people.
    budget : Budget
        Limits.
    """
    return budget.draws(people, (1.0 / ess - 1.0) / error**2)


# Limits of work. Scores around the mode: a few hundred people get 256 draws each, many get 64.
AROUND_THE_MODE = Budget(64, 256, 128_000, 16)
# Score at the mode, of people times choice situations: half a minute at most.
AT_THE_MODE = Budget(4, 1_024, 64_000_000)
# Information at the mode, with the fewest draws that its noise is known from.
INFORMATION = Budget(16, 4_096, 16_000_000, 16)
# The same for few parameters, of which draws cost little: the noise that 250 people show has few degrees of freedom
# (4,001 people, five choices, one taste: 32 draws, 3 % off).
INFORMATION_OF_FEW = Budget(256, 4_096, 64_000_000, 16)
# Log likelihood at the estimate: the noise of a sum over people shrinks beside it.
AT_THE_ESTIMATE = Budget(16, 1_024, 400_000)
# The same after chains, which took longer.
AFTER_CHAINS = Budget(64, 1_024, 20_000_000)
# One point of a posterior surface by new draws.
REINTEGRATED_POINT = Budget(64, 1_024, 128_000)
# The same of the few points at which a posterior surface is compared with other draws, of people times situations.
COMPARED_POINT = Budget(64, 1_024, 1_280_000)
# Fixed draws of a posterior surface, to begin with: what few people's draws miss matters more, and they cost less.
FIXED_DRAWS = Budget(64, 4_096, 64_000)
# The same of whitened draws, doubled until their own noise is small (60 people, one truncated normal: the same
# posterior from a quarter of the draws, in a third of the time).
FIXED_PATHS = Budget(64, 4_096, 16_000)
# People times draws of the search beyond which draws are not quadrupled to move the optimum less.
SEARCH_WORK = 6_400_000
# The same of more people than the largest subsample: to know the error of their few draws,
PRECISE_SEARCH_WORK = 64_000_000
# and to move the optimum less.
STEADY_SEARCH_WORK = 16_000_000
# Size of the subsample that gives differences around the mode: the larger of these, in people and in choice situations.
MOST_PEOPLE = 2_000
MOST_SITUATIONS = 20_000
