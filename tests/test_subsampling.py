"""Backward passes through some situations: exact values, and gradients whose mean over every mask is the whole one."""

import itertools
import math

import pytest
import torch

from mxlogit import SVI, MixedLogit, SpecificationError, Training
from mxlogit import memory_report as memory_report_of
from mxlogit.choices.data import ChoiceData
from mxlogit.execution.processes import Communicator
from mxlogit.guide import choose_draws, memory_report, sbp_logmeanexp, subsampling
from mxlogit.guide.amortized import AmortizedGuide
from mxlogit.guide.encoder import Encoder, SetEncoder, observed
from mxlogit.guide.memory import saved_bytes
from mxlogit.guide.population import GaussianFactor
from mxlogit.guide.subsampling import SBP, Masks, is_on_grid
from mxlogit.inference.svi.guide_objective import GuideObjective, ObjectiveSettings
from mxlogit.inference.svi.keep_control import KeepControl
from mxlogit.model.differences import difference_panels
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


def make_encoder(model, *, blocks=2, pool="mean", heads=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        encoder = SetEncoder(3, model.mixing, Encoder(6, blocks, pool, heads)).double()
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
    """All masks (n, t) that keep a given number of each person's situations."""
    choices = [itertools.combinations(row.nonzero()[:, 0].tolist(), kept) for row in seen]
    for places in itertools.product(*[list(c) for c in choices]):
        mask = torch.zeros_like(seen)
        for person, row in enumerate(places):
            mask[person, list(row)] = True
        yield mask


def scale_of(seen, kept=KEPT):
    return seen.sum(1) / float(kept)


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("pool", ["mean", "sum", "max", "attention"])
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
        mask = seen & is_on_grid(rank, torch.full((2, 1), KEPT), total, torch.tensor(phases)[:, None])
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


def test_independent_masks_of_segments_between_attentions_are_unbiased_and_a_shared_one_is_not(
    model, population, panel
):
    """Keys under one mask, queries under another: all pairs."""
    encoder, seen = make_encoder(model, blocks=1, heads=2), observed(panel)
    value, gradient = value_and_gradient(encoder, population, panel)
    settings, every, found = SBP(mode="query"), list(every_mask(seen)), {}
    for pair in itertools.product(range(len(every)), repeat=2):
        masks = Masks(settings, seen, tuple(every[i] for i in pair), scale_of(seen))
        masked, found[pair] = value_and_gradient(encoder, population, panel, masks)
        torch.testing.assert_close(masked, value, rtol=1e-12, atol=0)
    size = float(gradient.norm())
    torch.testing.assert_close(torch.stack(list(found.values())).mean(0), gradient, rtol=0, atol=1e-10 * size)
    shared = torch.stack([each for (first, second), each in found.items() if first == second]).mean(0)
    assert float((shared - gradient).norm()) > 0.01 * size


def test_attention_sees_other_situations_and_not_their_order_nor_padding(model, population, panel):
    encoder = make_encoder(model, heads=3)
    factor = encoder(population, panel)
    alone = encoder(population, panel.take(torch.tensor([1])))
    torch.testing.assert_close(factor.mean[1:], alone.mean, rtol=1e-10, atol=1e-12)
    wide = make_encoder(model, blocks=1, heads=1)
    rows = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    block, seen = wide.blocks[0], observed(panel)
    order = torch.tensor([2, 0, 3, 1])
    straight = block(rows, block.keys(rows), seen)
    shuffled = block(rows[:, order], block.keys(rows[:, order]), seen[:, order])
    torch.testing.assert_close(shuffled, straight[:, order], rtol=1e-10, atol=1e-12)
    other = rows.clone()
    other[:, 0, 0] += 1.0
    assert float((block(other, block.keys(other), seen) - straight)[:, 1:].detach().abs().max()) > 1e-3


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


@pytest.mark.parametrize(("mode", "heads"), [("whole", 0), ("layer", 0), ("official", 0), ("query", 2)])
def test_all_kept_is_plain_backpropagation_to_the_last_bit(mode, heads, model, population, panel):
    encoder, seen = make_encoder(model, heads=heads), observed(panel)
    masks = Masks.draw(SBP(1.0, mode), seen, (1, 0), torch.arange(2), 2, heads)
    plain, masked = (
        value_and_gradient(encoder, population, panel),
        value_and_gradient(encoder, population, panel, masks),
    )
    torch.testing.assert_close(masked, plain, rtol=0, atol=0)


@pytest.mark.parametrize("blocks", [1, 2])
def test_winners_of_maxima_are_exact(blocks, model, population, panel):
    encoder, seen = make_encoder(model, blocks=blocks, pool="max"), observed(panel)
    masks = Masks.draw(SBP(mode="winners"), seen, (1, 0), torch.arange(2), blocks)
    plain, masked = (
        value_and_gradient(encoder, population, panel),
        value_and_gradient(encoder, population, panel, masks),
    )
    torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("heads", [0, 2])
def test_what_is_recorded_changes_no_value(heads, model, population, panel, monkeypatch):
    """Recomputed rows have the same gradients, in parts too, those from rounded records nearly so."""
    monkeypatch.setattr(subsampling, "_CHUNK", 2)
    encoder, seen = make_encoder(model, heads=heads), observed(panel)
    plain, again, rounded = (
        value_and_gradient(
            encoder,
            population,
            panel,
            Masks.draw(SBP(0.5, min_keep=1, **how), seen, (1, 0), torch.arange(2), 2, heads),
        )
        for how in ({}, {"recompute": True}, {"half": True})
    )
    torch.testing.assert_close(plain, again, rtol=1e-12, atol=1e-13)
    assert torch.equal(rounded[0], plain[0])
    gap = float((rounded[1] - plain[1]).norm() / plain[1].norm())
    assert 1e-6 < gap < 0.01


@pytest.mark.parametrize("mask", ["grid", "random"])
def test_masks(mask):
    """The given number of each person's situations, each as often as any other, padding never; few are all kept."""
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
            mask = is_on_grid(
                torch.arange(total)[None], torch.tensor(kept), torch.tensor(total), torch.arange(total)[:, None]
            )
            assert bool((mask.sum(0) == kept).all() & (mask.sum(1) == kept).all())


def method_share(sbp):
    """What is kept at first."""
    words = {"auto": 0.5, "checkpoint": 1.0, "bfloat16": 1.0}
    return sbp.keep if isinstance(sbp, SBP) else words.get(sbp, sbp)


# Training of a few dozen steps ends far from the posterior, which the fit says.
@pytest.mark.filterwarnings("ignore:The estimated error:mxlogit.ConvergenceWarning")
@pytest.mark.parametrize(
    "settings",
    [
        # "auto" begins with it, and attention has it below.
        pytest.param({"sbp": 0.5}, marks=pytest.mark.slow),
        pytest.param({"sbp": SBP(0.3, "layer")}, marks=pytest.mark.slow),
        {"sbp": "auto"},
        pytest.param({"sbp": "checkpoint"}, marks=pytest.mark.slow),
        pytest.param({"sbp": "bfloat16"}, marks=pytest.mark.slow),
        {"sbp": 0.5, "encoder": Encoder(16, 2, "attention", heads=2)},
        {"sbp": SBP(0.5, draws=0.25), "objective": "iwae"},
    ],
)
def test_training_under_masks(settings):
    """The encoder's bound rises, estimates depend on the seed alone, and nothing is masked after training."""
    frame, _ = simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=80, n_situations=12, random_state=3
    )
    steps = 60 if settings["sbp"] == "auto" else 20 if "objective" in settings else 30
    method = SVI(polish=0, flow=None, n_samples=100, training=Training(steps=steps, batch_size=40), **settings)
    first, second = (MixedLogit(fixed=["x"], random=["z"], method=method, random_state=1).fit(frame) for _ in range(2))
    assert first.summary().equals(second.summary())
    kept = first.diagnostics_.get("sbp_keep", method_share(settings["sbp"]))
    assert (kept == method_share(settings["sbp"])) == (settings["sbp"] != "auto")
    if "objective" not in settings:
        untrained = SVI(**{**method.get_params(deep=False), "training": Training(steps=1, batch_size=40)})
        begun = MixedLogit(fixed=["x"], random=["z"], method=untrained, random_state=1).fit(frame)
        assert first.diagnostics_["elbo_local"] > begun.diagnostics_["elbo_local"]
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
        ({"sbp": "auto", "objective": "iwae"}, "give a share"),
        ({"sbp": SBP(draws=0.5)}, "objective='iwae'"),
        ({"sbp": SBP(draws=0.5), "objective": "iwae", "training": Training(gradient="dreg")}, "gradient='standard'"),
        ({"sbp": SBP(draws=2.0), "objective": "iwae"}, "at most 1"),
        ({"sbp": SBP(0.5, recompute=True, half=True)}, "not recorded"),
        ({"sbp": SBP("auto", "official")}, "unbiased mask"),
        ({"sbp": SBP(mode="query")}, "needs attention"),
        ({"sbp": SBP(mode="layer"), "encoder": Encoder(heads=4)}, "without attention"),
        ({"sbp": 0.5, "optimizer": "lbfgs", "encoder": "set"}, "one function"),
        ({"encoder": Encoder(heads=5)}, "divides"),
        ({"encoder": Encoder(heads=4, blocks=0)}, "blocks"),
        ({"encoder": Encoder(width=0)}, "width"),
        ({"encoder": Encoder(pool="median")}, "pool"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SpecificationError, match=message):
        SVI(**settings).check()


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


def test_rounded_records_take_half(long_guide):
    guide, panel = long_guide
    whole = memory_report(guide, panel)["encoder"]
    guide.sbp = SBP(1.0, half=True)
    # The record is of double precision here: a quarter, and rows and cells of whole numbers.
    assert 0.2 < memory_report(guide, panel)["encoder"] / whole < 0.4


def test_memory_report_of_an_estimator():
    frame, _ = simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=40, n_situations=30, random_state=3
    )
    est = MixedLogit(fixed=["x"], random=["z"], method=SVI(flow=None, sbp="bfloat16", training=Training(batch_size=20)))
    table = memory_report_of(est, frame)
    assert list(table.columns) == ["encoder", "flow", "likelihood", "step", "share"]
    assert list(table.index) == ["everything recorded", "keep 0.5", "keep 0.25", "keep 0.125", "sbp as given"]
    assert table["share"].iloc[0] == 1.0
    assert table["encoder"].iloc[:4].is_monotonic_decreasing
    assert table["encoder"].iloc[4] < 0.6 * table["encoder"].iloc[0]
    assert not hasattr(est, "result_")
    with pytest.raises(SpecificationError, match="set encoder"):
        memory_report_of(MixedLogit(fixed=["x"], random=["z"]), frame)


def test_masks_of_a_process_are_those_of_its_people(long_guide):
    """People of the second process have the masks that they would have in one process."""
    guide, panel = long_guide
    guide.sbp, population = SBP(0.5), guide.model.space.constrain(guide.base_mean)

    def gradient(people):
        weights = list(guide.encoder.parameters())
        # The head is zero at first, so only its own weights have a slope.
        guide.encoder.head.weight.data.fill_(0.01)
        return torch.autograd.grad(guide.encode(population, panel.take(people), places).log_det.sum(), weights)[0]

    places = torch.tensor([5, 6, 7])
    one = gradient(places)
    guide.first_person, places = 5, torch.arange(3)
    assert torch.equal(gradient(torch.tensor([5, 6, 7])), one)
    guide.first_person = 0
    assert not torch.equal(gradient(torch.tensor([5, 6, 7])), one)


def test_the_share_kept_follows_the_variance_that_masks_add(long_guide):
    guide, panel = long_guide
    guide.encoder.head.weight.data.fill_(0.01)

    def control_of(added):
        guide.sbp, control = SBP("auto", mask="random", added=added), KeepControl(guide, Communicator())
        for step in range(8):
            control.adjust(panel, torch.arange(8), (1, step))
        return guide.sbp.keep, control

    assert control_of(1e-9)[0] == pytest.approx(0.9)
    share, control = control_of(1e5)
    assert share == pytest.approx(1.0 / 16.0)
    added = control.masks / control.batches
    share, control = control_of(added)
    assert 0.3 < share < 0.7
    assert (1.0 / share - 1.0) * control.masks == pytest.approx(added * control.batches)
    # Variances at the share that was chosen: of six masks under each of eight noises, and of halves.
    people = torch.arange(8)
    found = [[control._halves(panel, people, (1, step, 7, mask)) for mask in range(6)] for step in range(100, 108)]
    gradients = torch.stack([torch.stack(row) for row in found])
    by_masks = float(gradients.mean(2).var(1).sum(-1).mean())
    by_batches = float(gradients.diff(dim=2).square().sum(-1).mean()) / 4.0 - by_masks
    assert 0.5 < by_masks / (added * by_batches) < 2.0


def test_draws_through_which_gradients_go(generator):
    """A simulated likelihood of two people, six draws: values exact, gradients unbiased over all subsets."""
    draws = torch.randn(2, 1, 6, generator=generator, dtype=torch.float64)
    slope = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    weights = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)

    def log_prob(points):
        taste = weights[0] + weights[1].exp() * points[:, 0]
        return torch.nn.functional.logsigmoid(slope[..., None] * taste[:, None] + weights[2]).sum(1)

    def gradient(value):
        return torch.autograd.grad(value.sum(), weights)[0]

    plain = log_prob(draws).logsumexp(-1) - math.log(6)
    exact = gradient(plain)
    chunked = sbp_logmeanexp(log_prob, draws, chunk=4)
    torch.testing.assert_close(chunked, plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(chunked), exact, rtol=1e-12, atol=1e-14)
    for count in (1, 2, 3):
        subsets = list(itertools.combinations(range(6), count))
        found, own = [], []
        for subset in subsets:
            kept = torch.tensor([subset, subset])
            value = sbp_logmeanexp(log_prob, draws, kept, chunk=4)
            torch.testing.assert_close(value.detach(), plain.detach(), rtol=1e-12, atol=0)
            found.append(gradient(value))
            own.append(gradient(log_prob(draws[..., list(subset)]).logsumexp(-1)))
        torch.testing.assert_close(torch.stack(found).mean(0), exact, rtol=1e-10, atol=1e-12)
        assert float((torch.stack(own).mean(0) - exact).norm()) > 0.01 * float(exact.norm())


def test_chosen_draws(generator):
    kept = choose_draws(500, 8, 0.5, generator)
    assert kept.shape == (500, 4)
    assert bool((kept.diff(dim=1) > 0).all())
    share = torch.zeros(8).scatter_add(0, kept.flatten(), torch.ones(kept.numel())) / 500
    assert float((share - 0.5).abs().max()) < 4.5 * 0.5 / math.sqrt(500)
    with pytest.raises(SpecificationError, match="0, 1"):
        choose_draws(2, 4, 0.0, generator)


def test_importance_weighted_bounds_through_some_draws(long_guide):
    """The same value whatever is recorded; recomputed draws give the same gradient; less is kept for it."""
    guide, panel = long_guide
    gradients, sizes = {}, {}
    for kept in (None, 1.0, 0.25):
        settings = ObjectiveSettings("iwae", 128, 2, share_of_draws=kept)
        objective = GuideObjective(guide, panel, settings, 3)
        point = objective.vector()
        gradients[kept] = objective.freeze(1, point).gradient(point)
        start = point.clone().requires_grad_()
        sizes[kept] = saved_bytes(lambda o=objective, x=start: o.freeze(1, x).function(x))
    torch.testing.assert_close(gradients[1.0], gradients[None], rtol=1e-9, atol=1e-9)
    assert gradients[0.25][0] == pytest.approx(gradients[None][0], rel=1e-12)
    assert not torch.allclose(gradients[0.25][1], gradients[None][1])
    encoder = 2 * memory_report(guide, panel)["encoder"]
    assert sizes[0.25] - encoder < 0.5 * (sizes[None] - encoder)


def test_masks_are_frozen_for_an_iteration_and_off_for_curvature(long_guide):
    """Under one key the same gradient; second derivatives are those of everything."""
    guide, panel = long_guide
    guide.encoder.head.weight.data.fill_(0.01)
    guide.sbp = SBP(0.25)
    objective = GuideObjective(guide, panel, ObjectiveSettings("iwae", 8, 2), 3)
    point = objective.vector()
    masked = objective.freeze(1, point).gradient(point)
    assert torch.equal(objective.freeze(1, point).gradient(point)[1], masked[1])
    whole, _ = objective.of_batches(8, masked=False)
    plain = whole.freeze(1, point).gradient(point)
    assert masked[0] == pytest.approx(plain[0], rel=1e-12)
    assert not torch.allclose(masked[1], plain[1])
    guide.sbp = None
    assert torch.equal(objective.freeze(1, point).gradient(point)[1], plain[1])


@pytest.mark.slow
def test_hessian_free_trains_through_masks():
    frame, _ = simulate_choices(
        fixed={"x": 0.5}, random={"z": (0.5, 1.0)}, n_decision_makers=80, n_situations=12, random_state=3
    )
    plain, masked = (
        MixedLogit(
            fixed=["x"],
            random=["z"],
            method=SVI(optimizer="hessian_free", encoder="set", sbp=sbp, training=Training(steps=14)),
            random_state=1,
        )
        .fit(frame)
        .summary()
        for sbp in (None, 0.5)
    )
    assert not masked["estimate"].equals(plain["estimate"])
    assert float(((masked["estimate"] - plain["estimate"]) / plain["std_error"]).abs().max()) < 1.0


def test_saved_bytes_count_storages_once():
    x = torch.ones(1_000, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(lambda: (2.0 * x).exp()) == 8_000
    assert saved_bytes(lambda: x * x, [x]) == 0

    def two() -> torch.Tensor:
        y = (2.0 * x).exp()
        return y * y[:].view(10, 100).flatten()

    assert saved_bytes(two) == 8_000
