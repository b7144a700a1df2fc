"""Shared fixtures: one thread, no leaks of global state, and a small ragged panel."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from mxlogit import ChoiceData
from mxlogit.model.dense_panels import PanelDifferences
from mxlogit.model.differences import difference_panels
from mxlogit.model.mixed_logit import MixedLogitModel
from mxlogit.model.mixing import Mixing
from mxlogit.model.parameters import ParameterSpace
from mxlogit.model.priors import Priors, resolve_priors

torch.set_num_threads(1)

# Costly cases of laws that other cases of the same test have by default: with them the default suite takes a tenth longer.
REPEATED = {
    "test_classes.py::TestEngines::test_evidence_and_leave_one_out_find_two_classes",
    "test_classes.py::TestEngines::test_a_mixture_of_normals",
    "test_reports.py::test_plots_are_labelled_grey_and_not_empty[plot_individual_tastes]",
    "test_trust.py::test_tastes_between_bounds[johnson_sb 60]",
    "test_recovery.py::test_truth_is_recovered[uniform]",
    "test_robustness.py::test_length_of_panels[100-80]",
    "test_classes.py::TestEngines::test_seeds_repeat_and_starts_agree",
    "test_predictive.py::test_differences_are_paired",
    "test_following_tastes.py::test_score_has_the_noise_of_tastes[normal]",
    "test_subsampling.py::test_independent_masks_of_blocks_are_unbiased_and_a_shared_one_is_not",
    "test_dtypes.py::test_names_from_any_ordered_collection",
    "test_wrong_sign.py::test_a_taste_beyond_the_upper_end_of_its_family_is_said",
    "test_generation.py::test_history_conditions",
    "test_generation.py::test_classes",
    "test_latent_shifts.py::test_other_families_are_fitted[censored_normal]",
    "test_latent_shifts.py::test_effects_are_seen_in_people",
    "test_latent_shifts.py::test_willingness_to_pay_is_that_of_samples",
    "test_within.py::test_covariates_and_deviations_together",
    "test_network.py::test_average_effects_are_differences_of_means",
    "test_subsampling.py::test_independent_masks_of_segments_between_attentions_are_unbiased_and_a_shared_one_is_not",
    "test_settings.py::test_no_setting_is_ignored[hessian_free-encoder]",
    "test_settings.py::test_no_setting_is_ignored[spline-flow_layers]",
    "test_settings.py::test_no_setting_is_ignored[natural-correct]",
    "test_study_runs.py::test_a_study_that_was_stopped_goes_on",
    "test_wrong_sign.py::test_the_rest_is_the_fit_without_the_column[mcmc]",
    "test_tutorials.py::test_tutorial_on_small_data[08_coming_from]",
    "test_tutorials.py::test_tutorial_on_small_data[10_segments_or_spread]",
    "test_levels.py::test_levels_do_not_matter_in_packs[default]",
    "test_ragged.py::test_every_engine_as_with_padding[mcmc]",
    "test_ragged.py::test_every_engine_as_with_padding[adam]",
    "test_intervals.py::test_people_of_the_fit_by_their_history[vi]",
    "test_mean_shifters.py::test_effects_are_those_of_interactions[vi]",
    "test_posteriors.py::test_correlated_tastes_have_the_exact_moments[mcmc]",
    "test_second_order.py::test_fixed_coefficients_alone[method3]",
    "test_saved_models.py::test_every_engine_answers_the_same_after_loading[vi]",
    "test_gpu.py::test_fits_do_not_depend_on_precision_or_device[single precision-vi]",
    "test_team.py::test_covariates_are_those_of_everybody",
    "test_subsampling.py::test_training_under_masks[settings5]",
    "test_subsampling.py::test_training_under_masks[settings6]",
    "test_marginal.py::test_effect_of_draws[families0]",
    "test_classes.py::TestEngines::test_variational_inference_against_chains",
    "test_classes.py::TestEngines::test_the_mode_of_a_flat_prior_is_the_maximum",
    "test_classes.py::TestAnswers::test_comparison_with_chains",
    "test_classes.py::TestBadRequests::test_more_classes_than_people_tell",
    "test_packed.py::test_labels_and_weights_survive",
    "test_ragged.py::test_a_pack_of_any_shape",
    "test_short_chains.py::test_chains_forget_a_fit_that_is_wrong[True]",
    "test_tutorials.py::test_tutorial_on_small_data[04_published_study]",
    "test_tutorials.py::test_tutorial_on_small_data[07_large_data]",
    "test_robustness.py::test_units_a_million_apart[500]",
    "test_second_order.py::test_linear_response_is_exact_for_a_gaussian_target",
    "test_marginal.py::test_variational_steps_find_the_best_gaussian",
    "test_mcmc.py::test_quantiles_of_people_are_those_of_their_states",
    "test_predictions.py::test_two_tastes_of_few_people_by_a_grid_over_every_posterior_sample",
    "test_intervals.py::test_estimates_with_intervals_are_those_without[individual-vi]",
    "test_wrong_sign.py::test_moments_that_do_not_exist_are_said",
    "test_saved_models.py::test_settings_of_every_kind",
    "test_model_selection.py::test_the_best_model_is_first_and_differences_are_paired",
    "test_tutorials.py::test_tutorial_on_small_data[03_vi_msle_mcmc]",
    "test_estimator.py::test_the_classic_route_runs_on_the_same_functions",
    "test_subsampling.py::test_the_share_kept_follows_the_variance_that_masks_add",
    "test_journal.py::test_natural_steps_are_judged_by_new_draws",
    "test_second_order.py::test_pairs_of_points_have_people_of_their_own",
    "test_trust.py::test_few_choices_of_a_lognormal_taste[lognormal 300 x 2, 1]",
    "test_trust.py::test_few_choices_of_two_tastes[normal 5000 x 1, 2]",
    "test_predictive.py::test_equals_refits_without_the_person",
    "test_wtp_space.py::test_a_random_scale_against_chains",
    "test_wtp.py::test_engines_know_what_an_hour_is_worth[MCMC]",
    "test_flows.py::test_auto_trains_a_flow_where_weights_are_uneven_only",
    "test_error.py::test_a_ridge_that_samples_miss_is_told",
    "test_ragged.py::test_every_engine_as_with_padding[vi]",
    "test_predictive.py::test_weights_are_counts_in_errors_too",
    "test_wtp_space.py::test_with_a_fixed_scale_both_spaces_have_one_posterior",
    "test_short_chains.py::test_the_default_takes_chains_where_it_would_fail",
    "test_settings.py::test_a_time_limit_ends_every_engine[nuts]",
    "test_settings.py::test_a_time_limit_ends_every_engine[fixed draws]",
    "test_settings.py::test_a_fit_that_time_ended_goes_on_from_its_file[{'correct': True}]",
    "test_ragged.py::test_every_engine_as_with_padding[hessian_free]",
    "test_subsampling.py::test_training_under_masks[settings2]",
    "test_posteriors.py::test_tastes_that_are_not_normal[johnson_sb]",
    "test_posteriors.py::test_people_never_seen_have_the_exact_moments[mcmc]",
    "test_mcmc.py::test_every_kind_of_model_comes_to_where_variational_inference_does[request_2-options2]",
    "test_mcmc.py::test_every_kind_of_model_comes_to_where_variational_inference_does[request_3-options3]",
    "test_flows.py::test_training_raises_effective_sizes_of_seen_and_unseen[affine]",
    "test_names.py::test_a_random_constant_alone_is_that_of_quadrature[mcmc]",
    "test_recovery.py::test_too_few_people_give_vague_answers_and_warnings[10-1-ab]",
    "test_posterior_sds.py::test_posterior_is_that_of_quadrature[500-5-3]",
    "test_short_chains.py::test_chains_forget_a_fit_that_is_wrong[False]",
    "test_tutorials.py::test_tutorial_on_small_data[06_flows_sbp_second_order]",
    "test_cli.py::test_demo_prints_and_draws[quick]",
    "test_tail_proposal.py::test_a_correlation_beside_a_small_standard_deviation[0]",
    "test_estimator.py::test_every_search_fits_fixed_coefficients_alone[hessian_free]",
    "test_tutorials.py::test_tutorial_on_small_data[09_transport_appraisal]",
    "test_team.py::test_two_processes_equal_one[own_people]",
    "test_saved_models.py::test_two_new_processes_print_the_same_digits[vi]",
    "test_saved_models.py::test_every_engine_answers_the_same_after_loading[dadvi]",
    "test_saved_models.py::test_every_engine_answers_the_same_after_loading[flow]",
    "test_trust.py::test_a_ridge_beyond_the_samples_is_told",
    "test_robustness.py::test_every_data_set[swissmetro]",
    "test_trust.py::test_tastes_between_bounds[truncated_normal 60]",
    "test_trust.py::test_few_choices_of_a_lognormal_taste[lognormal 2000 x 1, 1]",
    "test_posterior_sds.py::test_posterior_is_that_of_quadrature[500-1-2]",
    "test_tutorials.py::test_tutorial_on_small_data[02_reading_the_output]",
    "test_study.py::test_processes_do_not_matter[_Pickling]",
    "test_trust.py::test_few_choices_of_two_tastes[lognormal 5000 x 2, 2]",
    "test_wtp_space.py::test_default_priors_do_not_depend_on_the_units_of_money",
    "test_estimator.py::test_variants_of_the_classic_route_learn[options1]",
    "test_posteriors.py::test_tastes_that_are_not_normal[censored_normal]",
    "test_averaged_tastes.py::test_averages_are_those_of_draws_under_each_population[one choice]",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark repeated cases as slow."""
    for item in items:
        if item.nodeid.rpartition("/")[2] in REPEATED:
            item.add_marker(pytest.mark.slow)


REFERENCE = Path(__file__).parent / "reference"


def global_state() -> dict[str, object]:
    """Plain values of everything global that a call could disturb."""
    numpy_state = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (numpy_state[0], numpy_state[1].tolist(), *numpy_state[2:]),
        "torch": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "validate": torch.distributions.Distribution._validate_args,
    }


@pytest.fixture(autouse=True)
def no_global_leak() -> Iterator[None]:
    before = global_state()
    yield
    changed = [name for name, value in global_state().items() if value != before[name]]
    assert not changed, f"test changed global state: {', '.join(changed)}"


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20)


@pytest.fixture
def reference() -> Path:
    return REFERENCE


@pytest.fixture
def data(generator: torch.Generator) -> ChoiceData:
    """5 people, up to 3 situations, 4 alternatives, 5 attributes; ragged, with unavailable alternatives."""
    n, t, j, k = 5, 3, 4, 5
    attributes = torch.randn(n, t, j, k, generator=generator, dtype=torch.float64)
    available = torch.rand(n, t, j, generator=generator) > 0.25
    observed = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], dtype=torch.bool)
    chosen = torch.randint(0, j, (n, t), generator=generator)
    available.scatter_(2, chosen[..., None], value=True)
    return ChoiceData.from_arrays(
        attributes,
        chosen,
        names=list("abcde"),
        available=available,
        observed=observed,
        weights=torch.tensor([1.0, 2.0, 1.0, 0.5, 1.0]),
    )


@pytest.fixture
def panel(data: ChoiceData) -> PanelDifferences:
    """The panels of `data` as one dense array, with unavailable rows."""
    return difference_panels(data).dense()


@pytest.fixture
def space() -> ParameterSpace:
    """Two fixed and three random coefficients, two of them correlated."""
    return ParameterSpace(("a", "b"), ("c", "d", "e"), ((0, 2), (1,)))


@pytest.fixture
def model(space: ParameterSpace) -> MixedLogitModel:
    mixing = Mixing(["normal", "lognormal", "normal"])
    prior = resolve_priors(Priors(), mixing, space.n_fixed, [1.0] * 5)
    return MixedLogitModel(space, mixing, prior, torch.ones(5, dtype=torch.float64))
