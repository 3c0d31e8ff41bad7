//! What is our own among the packages of containers: the lean runtime, and what adds the client's dependencies to
//! Python's path.

use super::build::make_folder;
use crate::{ContentHash, IoFailure, io_failure::IoContext};
use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
};

/// A file of the package `evoke_runtime`.
macro_rules! own {
    ($name:literal) => {
        (concat!("evoke_runtime/", $name), include_str!(concat!("../../../../python/evoke_runtime/", $name)))
    };
}

/// Every file, by its place under `/pkg`.
const FILES: [(&str, &str); 16] = [
    // Python imports it when it starts.
    ("sitecustomize.py", include_str!("sitecustomize.py")),
    own!("__init__.py"),
    own!("__main__.py"),
    own!("connection.py"),
    own!("frames.py"),
    own!("inputs.py"),
    own!("lean.py"),
    own!("line.py"),
    own!("start.py"),
    own!("stream.py"),
    own!("template.py"),
    own!("transport.py"),
    own!("web.py"),
    own!("web_requests.py"),
    own!("web_server.py"),
    own!("web_socket.py"),
];

/// Stands for the content of all of it.
pub fn digest() -> String {
    let all: String = FILES.iter().map(|(name, text)| format!("{name}\n{}\n{text}", text.len())).collect();
    ContentHash::of(all.as_bytes()).to_hex()
}

/// Writes all of it into `/pkg` of a tree.
pub(super) fn write(tree: &Path) -> Result<(), IoFailure> {
    let pkg = tree.join("pkg");
    make_folder(&pkg)?;
    make_folder(&pkg.join("evoke_runtime"))?;
    for (name, text) in FILES {
        let path = pkg.join(name);
        fs::write(&path, text).during("write", &path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644)).during("set the mode of", &path)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_whole_package_is_carried() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../python/evoke_runtime");
        let names =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let there: BTreeSet<String> =
            names.filter(|name| name.ends_with(".py")).map(|name| format!("evoke_runtime/{name}")).collect();
        let carried: BTreeSet<String> = FILES[1..].iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(carried, there);
    }
}
