//! Real containers: isolation, limits, network, layers, and that nothing is ever left behind.
//!
//! These tests need root and Linux; without, they say so and pass. The program is its own helper: a helper
//! must be a process with a single thread, which a test harness is not. Programs in the containers are the
//! machine's own, seen read-only.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod gpus;
mod isolation;
mod layers;
mod leftovers;
mod limits;
mod machine;
mod network;
mod speed;

use machine::Machine;
use std::process::ExitCode;

/// Runs tests one after another, each on a machine of its own.
macro_rules! tests {
    ($filter:expr, $($module:ident :: $test:ident),* $(,)?) => {{
        let mut run = 0;
        $(
            let name = concat!(stringify!($module), "::", stringify!($test));
            if $filter.as_ref().is_none_or(|filter: &String| name.contains(filter.as_str())) {
                run += 1;
                eprint!("test {name} ... ");
                let machine = Machine::start();
                machine.block_on($module::$test(&machine));
                machine.stop();
                eprintln!("ok");
            }
        )*
        run
    }};
}

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let first = arguments.next();
    if first.as_deref() == Some("__helper") {
        machine::run_helper();
    }
    if first.as_deref() == Some("--list") {
        return ExitCode::SUCCESS;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containers are made by root alone");
        return ExitCode::SUCCESS;
    }
    let filter = first.filter(|argument| !argument.starts_with('-'));
    let run = tests!(
        filter,
        isolation::fulfils_the_contract,
        isolation::root_inside_is_nobody_outside,
        isolation::sees_only_itself,
        isolation::privileged_calls_are_refused,
        isolation::the_init_cannot_be_touched,
        isolation::programs_get_what_they_are_given,
        isolation::requests_that_break_the_rules_are_refused,
        gpus::a_container_sees_its_own_device_and_no_other,
        gpus::only_devices_of_this_machine_can_be_asked_for,
        gpus::a_layer_has_no_traces_of_devices,
        limits::memory,
        limits::processes,
        limits::usage_is_counted,
        network::reaches_the_bridge_and_no_other_container,
        network::listeners_are_open_from_the_start,
        layers::commit_and_unpack,
        layers::archives_cannot_escape,
        layers::copies_as_a_dockerfile_does,
        leftovers::nothing_is_left_after_destroy,
        leftovers::survives_a_killed_helper,
        leftovers::ends_with_its_holder,
        leftovers::failed_starts_leave_nothing,
        speed::measures_a_start,
    );
    eprintln!("{run} tests passed");
    ExitCode::SUCCESS
}
