//! The container's PID 1; see the library for what it does.

fn main() {
    std::process::exit(evoke_guest::run());
}
