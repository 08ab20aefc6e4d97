//! `quantize pull`, and Hub ids wherever a model is named: the environment's `HF_*` variables, progress, and a copy of the
//! files where one is asked for.

use super::{Format, HubArgs, PullArgs, print, print_json};
use crate::Result;
use std::path::{Path, PathBuf};

pub fn run(args: PullArgs) -> Result<()> {
    super::options::catch_interrupt()?;
    let path = fetch(&args.id, &args.hub, args.local_dir.as_deref(), args.common.quiet)?;
    match args.common.format {
        Format::Text => print(&format!("{}\n", path.display())),
        Format::Json => print_json(&serde_json::json!({ "id": args.id, "path": path })),
    }
}

/// The folder that holds the files of a Hub id (`org/name` or `org/name@revision`), after fetching those that are missing.
#[cfg(feature = "hub")]
pub fn fetch(id: &str, hub: &HubArgs, local_dir: Option<&Path>, quiet: bool) -> Result<PathBuf> {
    use crate::Error;
    use crate::source::hub::{HubOptions, Watch, fetch};
    use crate::writer::PartialFile;

    /// One progress bar per file.
    struct Bars(Option<super::progress::Progress>, bool);
    impl Watch for Bars {
        fn begin(&mut self, file: &str, bytes: u64) {
            self.0 = Some(super::progress::Progress::new(file, bytes, super::progress::Unit::Bytes, self.1));
        }
        fn advance(&mut self, bytes: u64) {
            if let Some(bar) = &self.0 {
                bar.advance(bytes);
            }
        }
    }

    let (name, inline) = id.split_once('@').map_or((id, None), |(name, rev)| (name, Some(rev)));
    if !super::options::is_hub_id(name) {
        return Err(Error::Usage(format!("'{id}' is no Hub id; write org/name or org/name@revision")));
    }
    let revision = inline.or(hub.revision.as_deref()).unwrap_or("main");
    let home = match &hub.hf_home {
        Some(home) => home.clone(),
        None => std::env::home_dir()
            .ok_or_else(|| Error::Usage("no home folder to keep the Hub's cache in; set HF_HOME".into()))?
            .join(".cache/huggingface"),
    };
    let stored = || std::fs::read_to_string(home.join("token")).ok();
    let token = hub.hf_token.clone().or_else(stored).map(|t| t.trim().to_string()).filter(|t| !t.is_empty());
    let endpoint = hub.hf_endpoint.as_deref().unwrap_or("https://huggingface.co");
    let options = HubOptions {
        endpoint: endpoint.trim_end_matches('/').to_string(),
        cache: home.join("hub"),
        token,
        offline: hub.offline,
    };
    let folder = fetch(name, revision, &options, &mut Bars(None, quiet), &super::options::CANCEL)?;
    super::progress::clear();
    let Some(target) = local_dir else { return Ok(folder) };
    std::fs::create_dir_all(target).map_err(|e| Error::io(target, e))?;
    for entry in std::fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))? {
        let from = entry.map_err(|e| Error::io(&folder, e))?.path();
        let to = target.join(from.file_name().unwrap_or_default());
        let same_size = |a: &Path, b: &Path| Some(a.metadata().ok()?.len() == b.metadata().ok()?.len());
        if same_size(&from, &to) == Some(true) {
            continue;
        }
        let partial = PartialFile::create(&to, true)?;
        std::fs::copy(&from, partial.temp_path()).map_err(|e| Error::io(&to, e))?;
        partial.finish()?;
    }
    Ok(target.to_path_buf())
}

#[cfg(not(feature = "hub"))]
pub fn fetch(id: &str, _: &HubArgs, _: Option<&Path>, _: bool) -> Result<PathBuf> {
    let what = format!("{id}: this build has no Hub access (it was made without the feature `hub`)");
    Err(crate::Error::Unsupported(what))
}
