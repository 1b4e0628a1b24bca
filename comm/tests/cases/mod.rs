//! What every process group must do, whatever the backend: programs for one rank of a group of any
//! size. A test starts a world of its backend and runs [`ALL`] on every rank.

mod data;
mod many;
mod messages;
mod order;
mod parts;
mod reductions;

use phalanx_comm::{ProcessGroup, Result};

/// The program of one rank. It panics where a result is wrong.
pub type Case = fn(&dyn ProcessGroup) -> Result<()>;

/// Every case, with its name.
pub const ALL: &[(&str, Case)] = &[
    ("reductions_match_a_loop", reductions::match_a_loop),
    ("large_reductions", reductions::large),
    ("nan_is_never_lost", reductions::nan_is_never_lost),
    (
        "reduce_gives_to_the_root_alone",
        reductions::to_the_root_alone,
    ),
    (
        "views_are_read_in_their_order",
        reductions::views_are_read_in_their_order,
    ),
    ("what_others_hold_stays", reductions::what_others_hold_stays),
    ("broadcast", parts::broadcast),
    ("all_gather_and_gather", parts::gathers),
    ("scatter", parts::scatter),
    ("reduce_scatter", parts::reduce_scatter),
    ("all_to_all", parts::all_to_all),
    ("all_to_all_v", parts::all_to_all_v),
    ("large_parts", parts::large),
    ("views_of_parts", parts::views_are_read_in_their_order),
    (
        "messages_in_the_order_of_issue",
        messages::in_the_order_of_issue,
    ),
    ("several_tensors_at_once", many::at_once),
    ("many_short_tensors", many::many_short_ones),
    ("gathered_into_a_buffer", many::into_a_buffer),
    ("messages_in_a_batch", messages::in_a_batch),
    (
        "messages_whole_or_not_at_all",
        messages::whole_or_not_at_all,
    ),
    ("messages_of_unknown_shape", messages::of_unknown_shape),
    (
        "what_a_group_says_of_itself",
        order::what_a_group_says_of_itself,
    ),
    ("messages_around_a_ring", messages::around_a_ring),
    ("messages_of_all_sizes", messages::of_all_sizes),
    ("a_thousand_in_flight", order::a_thousand_in_flight),
    ("any_order_any_thread", order::any_order_any_thread),
    ("dropping_and_polling", order::dropping_and_polling),
    ("labelled_calls", order::labelled_calls),
    ("barrier_meets_all", order::barrier_meets_all),
    ("two_dimensions_at_once", order::two_dimensions_at_once),
    ("split_by_key", order::split_by_key),
    (
        "wrong_arguments_hurt_nobody",
        order::wrong_arguments_hurt_nobody,
    ),
];
