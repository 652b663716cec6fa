//! The server, driven frame by frame over each fabric: the same cases on all of them.
//!
//! What these cases cannot see: a network that loses connections, and a disk that loses writes.

mod attackers;
mod closing;
mod leases;
mod session;

/// Every case, as a test of its own, over each fabric.
macro_rules! cases {
    ($($file:ident: $($case:ident)+;)+) => {
        cases!(@over local [kv_fabric::local::Local] []; $($file: $($case)+;)+);
        cases!(@over sim [kv_fabric::sim::Sim] []; $($file: $($case)+;)+);
        cases!(
            @over verbs [kv_fabric::verbs::Verbs] [#[ignore = "needs an RDMA device: VKV_TEST_DEVICE=rxe0"]];
            $($file: $($case)+;)+
        );
    };
    (@over $name:ident $fabric:tt $attributes:tt; $($file:ident: $($case:ident)+;)+) => {
        mod $name {
            $(mod $file {
                $(cases!(@test $attributes $fabric; $file $case);)+
            })+
        }
    };
    (@test [$($attribute:tt)*] [$fabric:ty]; $file:ident $case:ident) => {
        #[test]
        $($attribute)*
        fn $case() {
            crate::control::$file::$case::<$fabric>();
        }
    };
}

cases! {
    session:
        values_are_put_and_read_back_by_read_alone
        a_value_longer_than_a_window_goes_in_pieces
        lists_lookups_and_deletes_agree
        an_operation_is_done_once
        an_operation_begun_anew_gives_its_window_back
        a_wrong_crc_a_wrong_length_and_an_unknown_operation_store_nothing
        datasets_are_made_listed_renamed_and_dropped
        many_datasets_are_listed_in_pages
        a_dropped_dataset_is_announced_and_its_memory_freed_when_acknowledged
        limits_of_a_session_are_named
        data_connections_of_all_sessions_have_a_limit
        reserved_frames_are_unsupported_and_roles_are_kept
        bye_frees_the_session
        figures_count_frames_and_renewals
        memory_for_arriving_values_is_waited_for
        slow_writers_of_large_values_leave_room_for_others
        who_begins_values_and_sends_none_takes_nothing_from_others
        short_values_in_pieces_take_no_more_than_the_share_of_their_session
        a_short_value_longer_than_its_window_has_its_turn
        requests_that_are_no_connection_requests_are_refused_with_a_text
        a_role_that_is_told_is_the_keys
        ;
    closing:
        a_dataset_that_is_closed_ends_its_connections
        tokens_and_values_of_a_closed_dataset_are_void
        what_is_retired_does_not_wait_for_who_closed_the_dataset
        ;
    attackers:
        malformed_and_oversized_frames_end_their_session_alone
        the_reason_is_told_where_it_can_be
        replayed_and_repeated_requests_end_the_session
        before_auth_nothing_is_answered
        a_wrong_proof_and_an_unknown_key_look_alike
        a_proof_that_was_overheard_is_worth_nothing
        a_token_is_good_once_for_its_own_session_and_not_for_ever
        a_connection_reads_its_own_dataset_and_no_other
        who_takes_no_answers_loses_its_session_and_holds_up_nobody
        more_requests_than_credits_end_the_session
        half_open_connections_are_bounded_and_end_by_themselves
        connection_requests_for_sessions_that_are_over_are_refused
        ;
    leases:
        a_session_that_is_silent_past_its_lease_is_fenced
        only_renewals_renew
        who_acknowledges_nothing_is_fenced_however_often_it_renews
        a_put_that_is_silent_too_long_is_dropped
        memory_waits_for_the_lease_of_who_vanished_and_not_for_who_took_leave
        a_fenced_reader_reads_nothing
        renewals_tell_every_change_once_acknowledged_never_again
        sixty_four_datasets_fit_one_renewal
        ;
}
