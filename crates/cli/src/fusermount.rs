//! This program under the name of `fusermount`, on the path of what serves a container's file systems: see
//! [`evoke_runtime::fuse`].

use crate::names;
use evoke_runtime::fuse;
use std::path::Path;
use std::process::ExitCode;

/// Does what is asked under that name; none where this program was called by another.
pub(crate) fn run_if_called_so() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    let called = arguments.next()?;
    let name = Path::new(&called).file_name()?.to_str()?;
    if !fuse::FUSERMOUNT.contains(&name) {
        return None;
    }
    let arguments: Vec<String> = arguments.map(|argument| argument.to_string_lossy().into_owned()).collect();
    let socket = names::read(names::FUSE_COMMFD);
    Some(match fuse::fusermount(&arguments, socket.as_deref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("evoke: handing over a file system's descriptor: {error}");
            ExitCode::FAILURE
        }
    })
}
