//! Buckets of object stores in containers.

use super::Check;
use std::path::Path;

/// The check.
pub(super) fn check() -> Check {
    const SUBJECT: &str = "cloud buckets";
    let missing = [
        (!evoke_worker::has_bucket_client()).then_some("rclone (apt install rclone)"),
        (!Path::new("/dev/fuse").exists()).then_some("/dev/fuse (modprobe fuse)"),
    ];
    let missing: Vec<_> = missing.into_iter().flatten().collect();
    if missing.is_empty() {
        return Check::ok(SUBJECT, "CloudBucketMount works, by rclone");
    }
    let missing = missing.join(" and ");
    Check::ok(SUBJECT, format!("functions with a CloudBucketMount fail and say so, for lack of {missing}"))
}
