"""Backward passes through some situations: exact values, and gradients whose mean over every mask is the whole one."""

import itertools
import math

import pytest
import torch

from mxlogit import VI, MixedLogit, SpecificationError
from mxlogit.choices.data import ChoiceData
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, SetEncoder, observed
from mxlogit.guide.memory import memory_report, saved_bytes
from mxlogit.guide.population import GaussianFactor
from mxlogit.guide.subsampling import SBP, Masks, grid_keeps
from mxlogit.panels import difference_panels
from mxlogit.simulate import simulate_choices

KEPT = 2


@pytest.fixture
def panel(generator):
    """Two people with four and three situations, three alternatives, five attributes; padded."""
    attributes = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 3, (2, 4), generator=generator)
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]], dtype=torch.bool)
    return difference_panels(ChoiceData.from_arrays(attributes, chosen, names=list("abcde"), observed=seen))


@pytest.fixture
def population(model, generator):
    return model.space.constrain(0.3 * torch.randn(model.space.size, generator=generator, dtype=torch.float64))


def make_encoder(model, *, blocks=2, pool="mean"):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = SetEncoder(3, model.mixing, Encoder(6, blocks, pool)).double()
        for parameter in encoder.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return encoder


def value_and_gradient(encoder, population, panel, masks=None):
    """A curved function of the factors, and its gradients with respect to weights and locations, as one vector."""
    location = population.location.clone().requires_grad_()
    where = type(population)(population.fixed, location, population.scale_tril)
    factor = encoder(where, panel, masks)
    value = factor.mean.square().sum() + factor.log_det.sum() + factor.root.pow(3).sum()
    gradients = torch.autograd.grad(value, [*encoder.parameters(), location])
    return value.detach(), torch.cat([g.flatten() for g in gradients])


def every_mask(seen, kept=KEPT):
    """All masks (n, t) that keep so many of each person's situations."""
    choices = [itertools.combinations(row.nonzero()[:, 0].tolist(), kept) for row in seen]
    for places in itertools.product(*[list(c) for c in choices]):
        mask = torch.zeros_like(seen)
        for person, row in enumerate(places):
            mask[person, list(row)] = True
        yield mask


def scale_of(seen, kept=KEPT):
    return seen.sum(1) / float(kept)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("pool", ["mean", "sum", "max"])
def test_one_mask_around_the_encoder_is_unbiased(pool, blocks, model, population, panel):
    encoder, seen = make_encoder(model, blocks=blocks, pool=pool), observed(panel)
    value, gradient = value_and_gradient(encoder, population, panel)
    found = []
    for mask in every_mask(seen):
        masks = Masks(SBP(), seen, (mask,), scale_of(seen))
        masked, each = value_and_gradient(encoder, population, panel, masks)
        torch.testing.assert_close(masked, value, rtol=1e-12, atol=0)
        found.append(each)
    assert len(found) == 6 * 3
    assert float((torch.stack(found) - gradient).norm(dim=1).max()) > 0.01 * float(gradient.norm())
    torch.testing.assert_close(torch.stack(found).mean(0), gradient, rtol=0, atol=1e-10 * float(gradient.norm()))


def test_grids_are_unbiased(model, population, panel):
    """Over all phases of both people."""
    encoder, seen = make_encoder(model), observed(panel)
    _, gradient = value_and_gradient(encoder, population, panel)
    rank, total = seen.cumsum(1) - 1, seen.sum(1, keepdim=True)
    found = []
    for phases in itertools.product(range(4), range(3)):
        mask = seen & grid_keeps(rank, torch.full((2, 1), KEPT), total, torch.tensor(phases)[:, None])
        found.append(value_and_gradient(encoder, population, panel, Masks(SBP(), seen, (mask,), scale_of(seen)))[1])
    torch.testing.assert_close(torch.stack(found).mean(0), gradient, rtol=0, atol=1e-10 * float(gradient.norm()))


def test_independent_masks_of_blocks_are_unbiased_and_a_shared_one_is_not(model, population, panel):
    encoder, seen = make_encoder(model), observed(panel)
    value, gradient = value_and_gradient(encoder, population, panel)
    settings, every = SBP(mode="layer"), list(every_mask(seen))

    def mean(pairs):
        found = []
        for pair in pairs:
            masked, each = value_and_gradient(encoder, population, panel, Masks(settings, seen, pair, scale_of(seen)))
            torch.testing.assert_close(masked, value, rtol=1e-12, atol=0)
            found.append(each)
        return torch.stack(found).mean(0)

    size = float(gradient.norm())
    torch.testing.assert_close(mean(itertools.product(every, every)), gradient, rtol=0, atol=1e-10 * size)
    assert float((mean((mask, mask) for mask in every) - gradient).norm()) > 0.01 * size


def test_the_published_form_averages_to_the_share_kept(model, population, generator):
    """One block, panels of equal length: its weights get half of their gradient."""
    attributes = torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 3, (2, 4), generator=generator)
    panel = difference_panels(ChoiceData.from_arrays(attributes, chosen, names=list("abcde")))
    encoder, seen = make_encoder(model, blocks=1), observed(panel)
    _, gradient = value_and_gradient(encoder, population, panel)
    names = [(name, p.numel()) for name, p in encoder.named_parameters()]
    own = torch.cat(
        [torch.full((count,), name.startswith("blocks")) for name, count in names] + [torch.zeros(3).bool()]
    )
    kept = {}
    for step in range(60):
        masks = Masks.draw(SBP(0.5, "official"), seen, (1, step), torch.arange(2), 1)
        kept[tuple(masks.kept[0][0].tolist())] = value_and_gradient(encoder, population, panel, masks)[1]
    assert sorted(kept) == [(False, True, False, True), (True, False, True, False)]
    mean = torch.stack(list(kept.values())).mean(0)
    torch.testing.assert_close(mean[own], 0.5 * gradient[own], rtol=0, atol=1e-12 * float(gradient.norm()))


@pytest.mark.parametrize("mode", ["whole", "layer", "official"])
def test_all_kept_is_plain_backpropagation(mode, model, population, panel):
    encoder, seen = make_encoder(model), observed(panel)
    masks = Masks.draw(SBP(1.0, mode), seen, (1, 0), torch.arange(2), 2)
    plain, masked = (
        value_and_gradient(encoder, population, panel),
        value_and_gradient(encoder, population, panel, masks),
    )
    torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("blocks", [1, 2])
def test_winners_of_maxima_are_exact(blocks, model, population, panel):
    encoder, seen = make_encoder(model, blocks=blocks, pool="max"), observed(panel)
    masks = Masks.draw(SBP(mode="winners"), seen, (1, 0), torch.arange(2), blocks)
    plain, masked = (
        value_and_gradient(encoder, population, panel),
        value_and_gradient(encoder, population, panel, masks),
    )
    torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-13)


def test_recomputed_rows_have_the_same_gradients(model, population, panel):
    encoder, seen = make_encoder(model), observed(panel)
    each = [
        value_and_gradient(
            encoder,
            population,
            panel,
            Masks.draw(SBP(0.5, min_keep=1, recompute=recompute), seen, (1, 0), torch.arange(2), 2),
        )
        for recompute in (False, True)
    ]
    torch.testing.assert_close(each[0], each[1], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("mask", ["grid", "random"])
def test_masks(mask):
    """So many of each person's situations, each as often as any other, padding never; few are all kept."""
    lengths = torch.tensor([10, 7, 3])
    seen = torch.arange(10) < lengths[:, None]
    settings, people = SBP(0.4, mask=mask, min_keep=3), torch.tensor([4, 0, 9])
    total = torch.zeros(3, 10)
    for step in range(1_000):
        (kept,) = Masks.draw(settings, seen, (2, step), people, 2).kept
        assert kept.sum(1).tolist() == [4, 3, 3]
        assert not bool((kept & ~seen).any())
        total += kept
    share = total / 1_000
    expected = torch.tensor([4 / 10, 3 / 7, 1.0])[:, None] * seen
    assert float((share - expected).abs().max()) < 4.5 * math.sqrt(0.25 / 1_000)
    assert Masks.draw(settings, seen, (2, 0), people, 2).scale.tolist() == pytest.approx([2.5, 7 / 3, 1.0])


@pytest.mark.parametrize("mask", ["grid", "random"])
def test_a_persons_mask_depends_on_place_and_step_alone(mask):
    seen = torch.ones(6, 12, dtype=torch.bool)
    settings, people = SBP(0.5, mask=mask), torch.arange(6)
    (kept,) = Masks.draw(settings, seen, (2, 5), people, 2).kept
    order = torch.tensor([3, 0, 5])
    (some,) = Masks.draw(settings, seen[:3], (2, 5), order, 2).kept
    assert torch.equal(some, kept[order])
    (later,) = Masks.draw(settings, seen, (2, 6), people, 2).kept
    assert not torch.equal(later, kept)


def test_grids_of_any_ratio_keep_every_place_equally_often():
    for total in range(1, 30):
        for kept in range(1, total + 1):
            mask = grid_keeps(
                torch.arange(total)[None], torch.tensor(kept), torch.tensor(total), torch.arange(total)[:, None]
            )
            assert bool((mask.sum(0) == kept).all() & (mask.sum(1) == kept).all())


@pytest.mark.parametrize(
    "settings",
    [{"sbp": 0.5}, {"sbp": SBP(0.3, "layer")}, {"sbp": "checkpoint"}, {"sbp": 0.5, "encoder": Encoder(16, 3, "max")}],
)
def test_training_under_masks(settings):
    """The bound rises, estimates depend on the seed alone, and nothing is masked after training."""
    frame, _ = simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=80, n_situations=12, random_state=3
    )
    method = VI(population="adam", steps=50, batch_size=40, **settings)
    first, second = (MixedLogit(fixed=["x"], random=["z"], method=method, random_state=1).fit(frame) for _ in range(2))
    assert first.summary().equals(second.summary())
    rows = [row.objective for row in first.result_.history]
    assert rows[-1] > rows[0] - 20.0
    plain = MixedLogit(fixed=["x"], random=["z"], method=method.set_params(sbp=None), random_state=1).fit(frame)
    same = first.summary()["estimate"].equals(plain.summary()["estimate"])
    assert same == (settings["sbp"] == "checkpoint")
    gap = (first.summary()["estimate"] - plain.summary()["estimate"]) / plain.summary()["std_error"]
    assert float(gap.abs().max()) < 1.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sbp": 0.0}, "above 0 and at most 1"),
        ({"sbp": True}, "above 0 and at most 1"),
        ({"sbp": SBP(mode="qkv")}, "changes what the forward pass computes"),
        ({"sbp": SBP(mode="block")}, "mode"),
        ({"sbp": SBP(mask="stride")}, "mask"),
        ({"sbp": SBP(min_keep=0)}, "min_keep"),
        ({"sbp": SBP(mode="winners")}, "no winners"),
        ({"sbp": "checkpoints"}, "checkpoint"),
        ({"sbp": 0.5, "encoder": "rodrigues2022"}, "batch normalisation"),
        ({"sbp": 0.5, "encoder": None}, "encoders trained"),
        ({"sbp": 0.5, "objective": "iwae"}, "one function"),
        ({"sbp": 0.5, "population": "lbfgs", "encoder": "set"}, "one function"),
        ({"sbp": 0.5, "population": "newton"}, "encoders trained"),
        ({"encoder": Encoder(width=0)}, "width"),
        ({"encoder": Encoder(pool="median")}, "pool"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SpecificationError, match=message):
        VI(**{"population": "adam", **settings}).check()


@pytest.fixture
def long_guide(generator, model):
    """A guide, and a panel of eight people with 128 situations each."""
    attributes = torch.randn(8, 128, 3, 5, generator=generator, dtype=torch.float64)
    chosen = torch.randint(0, 3, (8, 128), generator=generator)
    panel = difference_panels(ChoiceData.from_arrays(attributes, chosen, names=list("abcde")))
    start = GaussianFactor(torch.zeros(model.space.size).double(), 0.1 * torch.eye(model.space.size).double())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        encoder = SetEncoder(3, model.mixing, Encoder(64)).double()
    return AmortizedGuide(model, start, encoder), panel


def test_memory_falls_with_the_share_kept(long_guide):
    """Bytes for the backward pass of the encoder: those of kept situations, and little that does not depend on them."""
    guide, panel = long_guide
    whole = memory_report(guide, panel)
    sizes = {}
    for keep in (0.5, 0.25, 0.125):
        guide.sbp = SBP(keep)
        sizes[keep] = memory_report(guide, panel)["encoder"] / whole["encoder"]
        assert sizes[keep] <= keep + 0.06
    assert sizes[0.5] - sizes[0.25] == pytest.approx(2.0 * (sizes[0.25] - sizes[0.125]), rel=0.05)
    assert whole["step"] == whole["encoder"] + whole["likelihood"]
    assert memory_report(guide.eval(), panel) == whole


def test_saved_bytes_count_storages_once():
    x = torch.ones(1_000, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(lambda: (2.0 * x).exp()) == 8_000
    assert saved_bytes(lambda: x * x, [x]) == 0

    def two() -> torch.Tensor:
        y = (2.0 * x).exp()
        return y * y[:].view(10, 100).flatten()

    assert saved_bytes(two) == 8_000
