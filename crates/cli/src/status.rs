//! `evoke status`: whether a server is up, its address and its processes.

use crate::data_folder::DataFolder;
use crate::local::{Status, is_no_server, status};
use crate::stdout;
use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

/// Exit code for "no server is up", as service managers use it.
const NOT_UP: u8 = 3;

/// Runs the verb.
pub(crate) fn run(data: Option<&Path>, json: bool) -> Result<ExitCode> {
    let data = DataFolder::locate(data)?;
    match status(&data) {
        Ok(status) if json => {
            let mut value = serde_json::to_value(&status)?;
            value["up"] = true.into();
            stdout::write(&(serde_json::to_string_pretty(&value)? + "\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(status) => {
            stdout::write(&render(&status))?;
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if json && is_no_server(&error) => {
            let value = serde_json::json!({ "up": false, "data": data.path() });
            stdout::write(&(serde_json::to_string_pretty(&value)? + "\n"))?;
            Ok(ExitCode::from(NOT_UP))
        }
        Err(error) => Err(error),
    }
}

fn render(status: &Status) -> String {
    format!(
        "up at {} for {}\n  data folder  {}\n  holder       pid {}\n  server       pid {}, version {}\n  \
         apps         {}\n  containers   {}\n",
        status.address,
        uptime(status.server_uptime_ms),
        status.data,
        status.holder_pid,
        status.server_pid,
        status.version,
        status.apps,
        status.containers
    )
}

fn uptime(ms: u64) -> String {
    let seconds = ms / 1_000;
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7_199 => format!("{} min", seconds / 60),
        7_200..=172_799 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uptimes_are_short() {
        for (ms, wanted) in [
            (900, "0 s"),
            (119_000, "119 s"),
            (120_000, "2 min"),
            (7_200_000, "2 h"),
            (259_200_000, "3 days"),
        ] {
            assert_eq!(uptime(ms), wanted);
        }
    }
}
