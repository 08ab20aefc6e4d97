//! Ctrl-C and the termination signal become a request to stop.

use crate::control::Cancel;
use crate::{Error, Result};
#[cfg(unix)]
use std::sync::Arc;
use std::sync::LazyLock;

/// Requested by Ctrl-C and by the termination signal.
pub static CANCEL: LazyLock<Cancel> = LazyLock::new(Cancel::new);

/// From here on Ctrl-C is a request to stop cleanly; a second one stops at once. And a limit on the size of files
/// (`ulimit -f`) lets a write fail, which is cleaned up after, instead of ending the program.
pub fn catch_interrupt() -> Result<()> {
    let failed = |e: &dyn std::fmt::Display| Error::Internal(format!("signal handler: {e}"));
    #[cfg(unix)]
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).map_err(|e| failed(&e))?;
    let cancel = CANCEL.clone();
    let installed = ctrlc::set_handler(move || {
        if cancel.request() {
            std::process::exit(75);
        }
    });
    installed.map_err(|e| failed(&e))
}
