//! Gives memory back after work that took much of it, so that an idle server is small.

use std::time::Duration;

/// Time between two looks. One look costs microseconds.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// Growth since the last time that is worth giving back.
const GROWTH_PAGES: u64 = 1024;

/// Looks for as long as the server lives.
pub(super) async fn keep_small() {
    let mut after_last = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // A /proc that cannot be read only means that nothing is given back.
        let Some(now) = resident_pages() else { continue };
        if now >= after_last + GROWTH_PAGES {
            evoke_runtime::memory::give_back();
            after_last = resident_pages().unwrap_or(now);
        }
    }
}

fn resident_pages() -> Option<u64> {
    std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()
}
