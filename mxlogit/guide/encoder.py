"""Encoders: each person's local factor from the set of their choice situations, in one pass.

Tokens are situations. A token holds the situation's attribute differences in whitened units, pooled over the other
alternatives, and its logit score and information at xi = 0. The network is thus invariant to the order of
situations and of alternatives, takes panels of any length, and depends on the population parameters. The head is
initialised at zero: the factor is then the one-step Newton solution from xi = 0, and training learns corrections to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mxlogit.errors import Rule, SpecificationError, check_settings, one_of, whole
from mxlogit.guide.attention import AttentionBlock, with_keys
from mxlogit.guide.families import family_rank, family_size, make_factor, whiten
from mxlogit.guide.subsampling import Masks
from mxlogit.integration.laplace import LocalFactor
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.likelihood import panel_probabilities
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import PopulationParameters
from mxlogit.model.person_tastes import PersonTastes
from mxlogit.model.triangles import inverse_of_lower

# Initial sd of the columns of low-rank precisions; chosen by hand.
_FIRST_COLUMNS = 0.1


# What each setting may be; `family_rank` checks the covariance.
_RULES: dict[str, Rule] = {
    "width": whole(1),
    "blocks": whole(0),
    "heads": whole(0),
    "pool": one_of("mean", "sum", "max", "attention"),
    "coordinates": one_of("whitened", "centred"),
}


@dataclass(frozen=True)
class Encoder:
    """Architecture of the set encoder and covariance family of its output.

    Parameters
    ----------
    width : int
        Width of tokens and residual blocks.
    blocks : int
        Number of residual blocks applied to each token.
    pool : {"mean", "sum", "max", "attention"}
        Pooling of a person's tokens; "attention": a mean whose weights are a softmax over situations.
    heads : int
        Number of attention heads over a person's situations at the start of every block, a divisor of ``width``; 0:
        no attention, so that situations do not interact before pooling.
    covariance : {"full", "diagonal", "rank1", "rank2", ...}
        Covariance family of the output: full, diagonal, or the precision is a diagonal plus a matrix of rank 1, 2, ...
        Newton steps after the encoder make the covariance full again.
    coordinates : {"whitened", "centred"}
        Coordinates of a restricted covariance: whitened tastes, standard normal in the population, or latent tastes.
        The posterior is nearly independent in whitened tastes if choices are little informative, and in latent tastes
        if they are informative about each taste separately.
    """

    width: int = 64
    blocks: int = 2
    pool: str = "mean"
    heads: int = 0
    covariance: str = "full"
    coordinates: str = "whitened"

    def check(self) -> None:
        """Raise unless the settings are valid.

        Raises
        ------
        SpecificationError
        """
        check_settings(self, _RULES)
        if self.heads and (self.width % self.heads or not self.blocks):
            raise SpecificationError(
                f"Encoder(heads={self.heads}) needs a width that it divides, and blocks; "
                f"got width={self.width}, blocks={self.blocks}."
            )
        family_rank(self.covariance)
        if self.coordinates == "centred" and self.covariance == "full":
            raise SpecificationError(
                "Encoder(coordinates='centred') is of a restricted covariance ('diagonal', 'rank1', ...): a full one "
                "is the same family in both coordinates."
            )


class ResidualBlock(nn.Module):
    """LayerNorm, linear, GELU, linear, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to the last axis."""
        out: Tensor = x + self.layers(x)
        return out


class SetEncoder(nn.Module):
    """Amortized local factor (Rodrigues 2022; set pooling after Zaheer et al. 2017, Deep Sets).

    Parameters
    ----------
    n_random : int
        Number k of random coefficients.
    mixing : Mixing
    shape : Encoder
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, n_random: int, mixing: Mixing, shape: Encoder | None = None) -> None:
        super().__init__()
        self.mixing, self.n_random, self.shape = mixing, n_random, shape or Encoder()
        covariance = self.covariance = self.shape.covariance
        self.coordinates = self.shape.coordinates
        width = self.shape.width
        cells = n_random * (n_random + 1) // 2
        self.alternative = nn.Sequential(nn.Linear(n_random + 1, width), nn.GELU())
        self.token = nn.Linear(width + n_random + cells, width)
        heads = self.shape.heads
        self.blocks = nn.ModuleList(
            AttentionBlock(width, heads) if heads else ResidualBlock(width) for _ in range(self.shape.blocks)
        )
        self.weigh = nn.Linear(width, 1) if self.shape.pool == "attention" else None
        self.context = nn.Sequential(nn.Linear(width + 1 + n_random + cells, width), nn.GELU())
        self.head = nn.Linear(width, n_random + family_size(covariance, n_random))
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        if family_rank(covariance) is not None:
            # Columns of zeros are a saddle point, where the gradient vanishes.
            nn.init.normal_(self.head.bias[2 * n_random :], std=_FIRST_COLUMNS)
        rows, columns = torch.tril_indices(n_random, n_random)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(
        self, population: PopulationParameters, panel: PanelDifferences, masks: Masks | None = None
    ) -> LocalFactor:
        """Return the local factors of a panel at given population parameters.

        Parameters
        ----------
        population : PopulationParameters
            Population parameters in the dtype of the panel.
        panel : PanelDifferences
            Panel of n people.
        masks : Masks, optional
            Situations to backpropagate through; all by default.

        Returns
        -------
        LocalFactor
        """
        panel = panel.single_section()
        whitened, prob = self._whiten(population, panel)
        weighted = whitened * prob
        mean = weighted.sum(2)
        score = -mean
        information = weighted.mT @ whitened - mean[..., :, None] * mean[..., None, :]
        seen = observed(panel)
        pooled_score, pooled_information = score.sum(1), information.sum(1)
        features = torch.cat([score, information[..., self.rows, self.columns]], -1)
        state = self._pool(self._tokens((whitened, prob, features), masks, seen), seen)
        summary = torch.cat(
            [
                state,
                panel.n_situations[:, None].to(state).log(),
                _squash(pooled_score),
                _squash(pooled_information[..., self.rows, self.columns]),
            ],
            -1,
        )
        return self._factor(pooled_score, pooled_information, self.head(self.context(summary)), population)

    def _whiten(self, population: PopulationParameters, panel: PanelDifferences) -> tuple[Tensor, Tensor]:
        """Differences times d beta / d xi at xi = 0, (n, t, J - 1, k), and probabilities (n, t, J - 1, 1)."""
        centre = population.location.expand(1, -1)
        value = self.mixing.evaluate(centre, population.location, population.scale)
        random = panel.values[..., population.fixed.shape[0] :]
        utility = PersonTastes(population, self.mixing).fixed_utility(panel) + random @ value.taste[0]
        _, prob = panel_probabilities(utility[..., None], panel)
        loading = value.slope[0][:, None] * population.scale_tril
        return panel.by_section(random @ loading)[0], panel.by_section(prob)[0]

    def _tokens(self, inputs: tuple[Tensor, ...], masks: Masks | None, seen: Tensor) -> Tensor:
        """Tokens (n, t, width) of situations."""
        if self.shape.heads:
            return self._attended(inputs, masks, seen)
        if masks is None:
            return self._token(*inputs)
        if masks.settings.mode == "winners":
            return masks.apply_to_winners(self._token, inputs)
        if masks.settings.mode == "whole":
            return masks.apply(0, self._token, inputs)
        tokens = self._embed(*inputs)
        for place, block in enumerate(self.blocks):
            tokens = tokens + masks.apply(place, block.layers, [tokens])  # type: ignore[arg-type]
        return tokens

    def _attended(self, inputs: tuple[Tensor, ...], masks: Masks | None, seen: Tensor) -> Tensor:
        """Tokens of an encoder with attention, computed segment by segment."""
        blocks: list[AttentionBlock] = list(self.blocks)  # type: ignore[arg-type]
        first = lambda *x: with_keys(self._embed(*x), blocks[0])  # noqa: E731
        state = first(*inputs) if masks is None else masks.apply(0, first, inputs)
        for place, (block, following) in enumerate(zip(blocks, [*blocks[1:], None], strict=True)):
            # Copied: saving a view of the keys for the backward pass would keep the tokens in memory, too.
            tokens, keys = state[..., : block.width], state[..., block.width :].contiguous()
            segment = lambda x, *given, block=block, following=following: with_keys(block(x, *given), following)  # noqa: E731
            if masks is None:
                state = segment(tokens, keys, seen)
            else:
                state = masks.apply_to_queries(place + 1, segment, tokens, keys)
        return state

    def _token(self, whitened: Tensor, prob: Tensor, features: Tensor) -> Tensor:
        """Token (..., width) of each situation, without attention."""
        token = self._embed(whitened, prob, features)
        for block in self.blocks:
            token = block(token)
        return token

    def _embed(self, whitened: Tensor, prob: Tensor, features: Tensor) -> Tensor:
        alternatives = self.alternative(torch.cat([_squash(whitened), prob], -1))
        # Unavailable alternatives have probability zero and drop out.
        mixed = (alternatives * prob).sum(-2)
        embedded: Tensor = self.token(torch.cat([mixed, _squash(features)], -1))
        return embedded

    def _pool(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Pool the tokens of each person's observed situations into one vector (n, width)."""
        if self.shape.pool == "max":
            return tokens.masked_fill(~seen[..., None], -math.inf).amax(1)
        if self.weigh is not None:
            shares = self.weigh(tokens).masked_fill(~seen[..., None], -math.inf).softmax(1)
            return (shares * tokens).sum(1)
        total = (tokens * seen[..., None]).sum(1)
        if self.shape.pool == "sum":
            return total
        return total / seen.sum(1, keepdim=True).clamp(min=1)

    def _factor(
        self, score: Tensor, information: Tensor, head: Tensor, population: PopulationParameters
    ) -> LocalFactor:
        """Newton solution from xi = 0, with mean and precision modified by the head's output."""
        k = self.n_random
        identity = torch.eye(k, dtype=score.dtype, device=score.device)
        tril = torch.linalg.cholesky(information + identity)
        newton = torch.cholesky_solve(score[..., None], tril)[..., 0]
        if self.covariance != "full":
            return self._family_factor(newton, information + identity, head, population)
        # Precision factor of q: the Newton one times a lower-triangular factor, initially the identity.
        stretch = torch.zeros_like(information)
        stretch[:, self.rows, self.columns] = head[:, k:]
        diagonal = stretch.diagonal(dim1=-2, dim2=-1)
        stretch = stretch.tril(-1) + torch.diag_embed(diagonal.exp())
        precision_tril = tril @ stretch
        inverse = inverse_of_lower(precision_tril)
        mean = newton + (inverse.mT @ head[:, :k, None])[..., 0]
        log_det = -precision_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return LocalFactor(mean, inverse.mT, precision_tril, log_det)

    def _family_factor(
        self, newton: Tensor, precision: Tensor, head: Tensor, population: PopulationParameters
    ) -> LocalFactor:
        """Newton solution with a restricted precision, whose diagonal is initially the one of the information."""
        k, mean = self.n_random, newton
        if self.coordinates == "centred":
            tril = population.scale_tril
            mean = population.location + newton @ tril.mT
            loading = inverse_of_lower(tril)
            precision = loading.mT @ precision @ loading
        log_precision = precision.diagonal(dim1=-2, dim2=-1).log()
        numbers = torch.cat([log_precision + head[:, k : 2 * k], head[:, 2 * k :]], -1)
        factor = make_factor(self.covariance, mean + head[:, :k] * (-0.5 * log_precision).exp(), numbers)
        return whiten(factor, population) if self.coordinates == "centred" else factor


def observed(panel: PanelDifferences) -> Tensor:
    """Mask (n, t) of observed situations, False at the padding of shorter panels."""
    equal = panel.single_section()
    (available,) = equal.by_section(~equal.unavailable_rows())
    return available.any(-1)


class PublishedEncoder(nn.Module):
    """Network of Rodrigues (2022, arXiv 2004.05426), version 0.1 of its code, for comparison.

    Flattened attributes and availability of each situation -> BatchNorm -> linear -> maximum over situations ->
    ReLU -> BatchNorm -> linear -> ReLU -> mean and Cholesky factor of the person's *latent tastes*. Its output does
    not depend on the population parameters, and it takes one number of alternatives only. Differences to the chosen
    alternative replace the attributes and the one-hot choice.

    Parameters
    ----------
    n_random : int
        Number k of random coefficients.
    n_inputs : int
        Number of inputs per situation: (J - 1) times (f + k + 1).
    width : int
        Width of both hidden layers.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, n_random: int, n_inputs: int, width: int = 200) -> None:
        super().__init__()
        self.n_random = n_random
        cells = n_random * (n_random + 1) // 2
        self.norm = nn.BatchNorm1d(n_inputs)
        self.token = nn.Linear(n_inputs, width)
        self.pooled_norm = nn.BatchNorm1d(width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, n_random + cells)
        rows, columns = torch.tril_indices(n_random, n_random)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, population: PopulationParameters, panel: PanelDifferences) -> LocalFactor:
        """Return the local factors of whitened tastes (shapes as in `SetEncoder.forward`).

        Raises
        ------
        SpecificationError
            If a choice set is larger than the network's input.
        """
        others = self.norm.num_features // (panel.n_columns + 1)
        panel = panel.single_section(others)
        if panel.sections[0].others > others:
            raise SpecificationError(
                f"the published network serves choice sets of up to {others + 1} alternatives, as in the data of the "
                f"fit; got {panel.sections[0].others + 1}. SVI(encoder='set') serves any."
            )
        values, unavailable = (panel.by_section(rows)[0] for rows in (panel.values, panel.unavailable_rows()))
        values = values.flatten(2)
        inputs = torch.cat([values, (~unavailable).to(values)], -1)
        tokens = self.token(self.norm(inputs.flatten(0, 1))).unflatten(0, inputs.shape[:2])
        padding = unavailable.all(-1, keepdim=True)
        pooled = tokens.masked_fill(padding, -math.inf).amax(1).relu()
        head = self.head(self.hidden(self.pooled_norm(pooled)).relu())
        return whiten(self._latent_factor(head), population)

    def _latent_factor(self, head: Tensor) -> LocalFactor:
        """Factor of the latent tastes eta."""
        k = self.n_random
        root = head.new_zeros(len(head), k, k)
        root[:, self.rows, self.columns] = head[:, k:]
        diagonal = nn.functional.softplus(root.diagonal(dim1=-2, dim2=-1)) + 1e-4
        root = root.tril(-1) + torch.diag_embed(diagonal)
        inverse = inverse_of_lower(root)
        return LocalFactor(head[:, :k], root, inverse.mT, diagonal.log().sum(-1))


def _squash(x: Tensor) -> Tensor:
    """Signed logarithm, which brings features of any size to order one."""
    return x.sign() * x.abs().log1p() / math.log(2.0)
