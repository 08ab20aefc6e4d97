//! `quantize pull`: fetches from the Hub what a conversion needs.

use super::{HubArgs, PullArgs, print};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

pub fn run(args: PullArgs) -> Result<()> {
    let path = fetch(&args.id, &args.hub, args.local_dir.as_deref(), args.common.quiet)?;
    print(&format!("{}\n", path.display()))
}

/// The folder that holds the files of a Hub id, after fetching those that are missing.
pub fn fetch(id: &str, _hub: &HubArgs, _local_dir: Option<&Path>, _quiet: bool) -> Result<PathBuf> {
    Err(Error::Unsupported(format!("{id}: this build cannot fetch from the Hub")))
}
