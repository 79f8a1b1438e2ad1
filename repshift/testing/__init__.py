"""What every backbone promises, as a function: prove one of your own by a single call.

::

    repshift.BACKBONES.register("mine", MyBackbone())
    repshift.testing.check_backbone(MyModel().eval(), torch.randn(3, 3, 32, 32))

Every check is a function in :data:`CHECKS`, so that a test can run them one by one. Those in :data:`EXPORTS` write
files for other runtimes; they are not part of the call, because they need packages (extra ``onnx``) or a compiler.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from repshift.recipes import Recipe
from repshift.testing import compilation, descriptions, devices, equivalence, isolation, programs
from repshift.testing.subjects import BackboneError, KeepAll, Subject, leftovers, make_subject

__all__ = ["CHECKS", "EXPORTS", "BackboneError", "KeepAll", "Subject", "check_backbone", "leftovers", "make_subject"]

CHECKS: dict[str, Callable[[Subject], None]] = {
    "tokens and blocks are as described": descriptions.tokens_and_blocks_are_as_described,
    "nothing dropped is the dense model, bit for bit": equivalence.nothing_dropped_is_the_dense_model,
    "so are the gradients": equivalence.gradients_of_nothing_dropped_are_those_of_the_dense_model,
    "what is left is treated as in the dense model": equivalence.what_is_left_is_treated_as_in_the_dense_model,
    "places do not matter behind a cut": equivalence.places_do_not_matter_behind_a_cut,
    "as many tokens are left as the schedule says": equivalence.as_many_tokens_are_left_as_the_schedule_says,
    "merged tokens count for all that they are": descriptions.merged_tokens_count_for_all_that_they_are,
    "restored tokens have their places back": descriptions.restored_tokens_have_their_places_back,
    "images do not disturb each other": equivalence.images_do_not_disturb_each_other,
    "the original stays as it was": isolation.the_original_stays_as_it_was,
    "weights are shared whatever torch does to them": isolation.weights_are_shared_whatever_torch_does_to_them,
    "copies prune alike": compilation.copies_prune_alike,
    "exports prune alike": compilation.exports_prune_alike,
    "exports take any batch": compilation.exports_take_any_batch,
    "compiled models prune alike, in any order": compilation.compiled_models_prune_alike_in_any_order,
    "compiled models make one more graph for other batches": (
        compilation.compiled_models_make_one_more_graph_for_other_batches
    ),
    "graph breaks change nothing": compilation.graph_breaks_change_nothing,
    "a forward stays on its device": devices.a_forward_stays_on_its_device,
    "threads do not disturb each other": isolation.threads_do_not_disturb_each_other,
    "nothing is left of a forward": isolation.nothing_is_left_of_a_forward,
    "nothing is left of a forward that fails": isolation.nothing_is_left_of_a_forward_that_fails,
    "trackers see their own thread only": isolation.trackers_see_their_own_thread_only,
    "a tracker does not disturb compiled models": compilation.a_tracker_does_not_disturb_compiled_models,
    "what is recorded is what is pruned by": equivalence.recorded_and_pruned_by_are_the_same,
}

# Further ones, which need packages or a compiler, and many seconds
EXPORTS: dict[str, Callable[[Subject], None]] = {
    "ONNX files prune alike": programs.onnx_files_prune_alike,
    "AOTInductor packages prune alike": programs.aoti_packages_prune_alike,
}


def check_backbone(model: nn.Module, images: Tensor, recipe: Recipe | None = None) -> tuple[str, ...]:
    """Check that a model keeps what every pruned model promises.

    That its blocks and tokens are as the backbone says; that dropping nothing is the dense model bit for bit; that
    tokens that are left are treated as in the dense model, and merged ones count for all that they are;
    that images do not disturb each other; that the original stays as it was and shares its weights; that the pruned
    model compiles in any order and with graph breaks, exports for any batch, stays on its device, copies, pickles,
    trains and runs in several threads; that nothing of a forward is left, even if it fails anywhere; and that
    trackers see what happens, and nothing else.

    Args:
        model: A model that a registered backbone knows, in evaluation mode, small enough to run some hundred times.
        images: ``(batch, ...)``, floating-point, two or more that differ; what the model takes.
        recipe: How to prune it; by default a quarter goes after the first two blocks that can be scored.

    Returns:
        The names of the checks.

    Raises:
        UnsupportedModelError: If no backbone knows the model.
        BackboneError: If a promise is not kept; the message lists all that are not.
    """
    subject = make_subject(model, images, recipe)
    failures = []
    for name, check in CHECKS.items():
        try:
            check(subject)
        except Exception as error:  # whatever a foreign model raises is a promise that was not kept
            failures.append(f"{name}: {type(error).__name__}: {error}")
    if failures:
        listed = "\n".join(f"- {failure}" for failure in failures)
        name, all_of_them = type(model).__name__, len(CHECKS)
        raise BackboneError(f"{name} breaks {len(failures)} of {all_of_them} promises:\n{listed}")
    return tuple(CHECKS)
