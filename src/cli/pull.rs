//! `quantize pull`: fetches from the Hub what a conversion needs. Also where a Hub id given to any other command becomes
//! a folder, and where the Hub's environment variables are read.

use super::args::HubArgs;
use super::commands::PullArgs;
use crate::Result;
use std::path::{Path, PathBuf};

#[cfg(not(feature = "hub"))]
pub fn run(args: PullArgs) -> Result<()> {
    fetch(&args.id, &args.hub, args.local_dir.as_deref(), args.common.quiet).map(|_| ())
}

/// Errors: always `Unsupported`: this build has no Hub.
#[cfg(not(feature = "hub"))]
pub fn fetch(id: &str, _hub: &HubArgs, _local_dir: Option<&Path>, _quiet: bool) -> Result<PathBuf> {
    Err(crate::Error::unsupported(format!("{id}: this build cannot fetch from the Hub"))
        .hint("download the repository another way and name its folder, or build with `--features hub`"))
}

/// Errors: always `Unsupported`: this build has no Hub.
#[cfg(not(feature = "hub"))]
pub fn fetch_config(id: &str, hub: &HubArgs, quiet: bool) -> Result<PathBuf> {
    fetch(id, hub, None, quiet)
}

/// Errors: always `Unsupported`: this build has no Hub.
#[cfg(not(feature = "hub"))]
pub fn fetch_dataset_file(address: &str, _hub: &HubArgs, _quiet: bool) -> Result<PathBuf> {
    Err(crate::Error::unsupported(format!("{address}: this build cannot fetch from the Hub"))
        .hint("download the file another way and name it, or build with `--features hub`"))
}

#[cfg(feature = "hub")]
pub use with_hub::{fetch, fetch_config, fetch_dataset_file, options, run};

#[cfg(feature = "hub")]
mod with_hub {
    use super::*;
    use crate::Error;
    use crate::cli::args::Format;
    use crate::cli::interrupt::{CANCEL, catch_interrupt};
    use crate::cli::output::{print, print_json};
    use crate::cli::progress::Terminal;
    use crate::control::{Phase, Report, Unit};
    use crate::source::hub::{self, HubOptions, Snapshot, Watch};
    use crate::{disk::free_space, writer::gguf::human};

    const ENDPOINT: &str = "https://huggingface.co";

    pub fn run(args: PullArgs) -> Result<()> {
        catch_interrupt()?;
        let (path, snapshot) =
            pull(&crate::cli::values::of_address(&args.id), &args.hub, args.local_dir.as_deref(), args.common.quiet)?;
        match args.common.format {
            Format::Text => print(&format!("{}\n", path.display())),
            Format::Json => print_json(&serde_json::json!({
                "id": args.id,
                "path": crate::escape::path(&path),
                "commit": snapshot.commit,
                "files": snapshot.files,
            })),
        }
    }

    /// The folder that holds the files of a Hub id (`org/name` or `org/name@revision`), after fetching those that are
    /// missing: `local_dir` where one is given, else the snapshot in the cache.
    pub fn fetch(id: &str, args: &HubArgs, local_dir: Option<&Path>, quiet: bool) -> Result<PathBuf> {
        pull(id, args, local_dir, quiet).map(|(path, _)| path)
    }

    fn pull(id: &str, args: &HubArgs, local_dir: Option<&Path>, quiet: bool) -> Result<(PathBuf, Snapshot)> {
        let (id, options) = at_revision(id, args)?;
        let snapshot = watched(&options, quiet, |watch| hub::fetch(id, &options, watch))?;
        match local_dir {
            Some(dir) => hub::export(&snapshot, dir).map(|()| (dir.to_path_buf(), snapshot)),
            None => Ok((snapshot.path.clone(), snapshot)),
        }
    }

    /// What a plan needs: the folder where it is in the cache, else config.json.
    pub fn fetch_config(id: &str, args: &HubArgs, quiet: bool) -> Result<PathBuf> {
        let (id, options) = at_revision(id, args)?;
        watched(&options, quiet, |watch| hub::fetch_config(id, &options, watch))
    }

    /// Takes `org/name@revision` apart; `--revision` says the same another way.
    fn at_revision<'a>(id: &'a str, args: &HubArgs) -> Result<(&'a str, HubOptions)> {
        let (id, revision) = match (id.split_once('@'), &args.revision) {
            (Some((_, at)), Some(flag)) if at != flag => {
                return Err(Error::Usage(format!("'{id}' and --revision {flag} name different revisions")));
            }
            (Some((id, at)), _) => (id, at.to_string()),
            (None, flag) => (id, flag.clone().unwrap_or_else(|| "main".into())),
        };
        Ok((id, options(revision, args)?))
    }

    /// A file of a data set: `hf://datasets/org/name/path`, where the revision may stand at the end or after the name.
    pub fn fetch_dataset_file(address: &str, args: &HubArgs, quiet: bool) -> Result<PathBuf> {
        let (id, file, revision) = dataset_address(address).ok_or_else(|| {
            Error::Usage(format!("'{address}' names no file of a data set; write hf://datasets/org/name/path/to/file"))
        })?;
        let options = options(revision, args)?;
        watched(&options, quiet, |watch| hub::fetch_dataset_file(&id, &file, &options, watch))
    }

    /// `org/name`, path and revision.
    fn dataset_address(address: &str) -> Option<(String, String, String)> {
        let mut parts = address.strip_prefix("hf://datasets/")?.splitn(3, '/');
        let (org, name, path) = (parts.next()?, parts.next()?, parts.next()?);
        let (name, path, revision) = match (name.split_once('@'), path.rsplit_once('@')) {
            // A slash in a revision before the path is written %2F, as huggingface_hub does.
            (Some((name, revision)), _) => (name, path, revision.replace("%2F", "/").replace("%2f", "/")),
            (None, Some((path, revision))) => (name, path, revision.to_string()),
            (None, None) => (name, path, "main".to_string()),
        };
        (!path.is_empty()).then(|| (format!("{org}/{name}"), path.to_string(), revision))
    }

    /// Runs a download with a progress bar, after a look at the free disk space.
    fn watched<T>(options: &HubOptions, quiet: bool, download: impl FnOnce(&Watch) -> Result<T>) -> Result<T> {
        let terminal = Terminal::new(quiet);
        let begin = |bytes: u64| {
            if let Some(free) = free_space(&existing(&options.cache).join("x")).filter(|&free| free < bytes) {
                let (cache, needed, free) = (options.cache.display(), human(bytes), human(free));
                return Err(Error::storage(format!("{cache}: needs {needed} of disk, {free} free"))
                    .hint("make room, or set HF_HOME to a folder on another disk"));
            }
            terminal.begin(&Phase { name: "downloading".into(), unit: Unit::Bytes, total: bytes });
            Ok(())
        };
        let advance = |bytes: u64| terminal.advance(bytes);
        let fetched = download(&Watch { cancel: CANCEL.flag(), begin: &begin, advance: &advance });
        terminal.end();
        fetched
    }

    /// Flags, then the variables that huggingface_hub reads, then its defaults.
    pub fn options(revision: String, args: &HubArgs) -> Result<HubOptions> {
        let home = match std::env::var_os("HF_HOME").filter(|home| !home.is_empty()) {
            Some(home) => PathBuf::from(home),
            None => default_home().ok_or_else(|| Error::Usage("there is no home folder; set HF_HOME".into()))?,
        };
        let home = std::path::absolute(&home).map_err(|e| Error::io(&home, e))?;
        let cache = std::env::var_os("HF_HUB_CACHE").filter(|path| !path.is_empty()).map(PathBuf::from);
        let endpoint = std::env::var("HF_ENDPOINT").unwrap_or_default();
        let endpoint = endpoint.trim().trim_end_matches('/');
        let endpoint = if endpoint.is_empty() { ENDPOINT } else { endpoint };
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Usage(format!("HF_ENDPOINT '{endpoint}' does not begin with https:// or http://")));
        }
        let stored = || std::fs::read_to_string(home.join("token")).ok();
        let token = std::env::var("HF_TOKEN").ok().filter(|token| !token.trim().is_empty()).or_else(stored);
        let token = token.map(|token| token.trim().to_string()).filter(|token| !token.is_empty());
        if token.as_ref().is_some_and(|token| !token.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(Error::Usage("the token in HF_TOKEN or HF_HOME/token holds characters no token has".into()));
        }
        Ok(HubOptions {
            endpoint: endpoint.to_string(),
            cache: cache.unwrap_or_else(|| home.join("hub")),
            token,
            proxy: proxy(endpoint),
            certificates: certificates(),
            offline: args.offline,
            revision,
        })
    }

    fn default_home() -> Option<PathBuf> {
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
        Some(cache.or_else(|| Some(std::env::home_dir()?.join(".cache")))?.join("huggingface"))
    }

    /// The proxy that the customary variables name for the endpoint.
    fn proxy(endpoint: &str) -> Option<String> {
        let var = |name: &str| {
            let value = std::env::var(name.to_lowercase()).or_else(|_| std::env::var(name));
            value.ok().filter(|value| !value.is_empty())
        };
        let (scheme, rest) = endpoint.split_once("://")?;
        let host = rest.split(['/', ':']).next()?;
        let except = var("NO_PROXY").unwrap_or_default();
        let covers = |rule: &str| {
            let rule = rule.trim().trim_start_matches('.');
            rule == "*" || (!rule.is_empty() && (host == rule || host.ends_with(&format!(".{rule}"))))
        };
        if except.split(',').any(covers) {
            return None;
        }
        var(if scheme == "https" { "HTTPS_PROXY" } else { "HTTP_PROXY" }).or_else(|| var("ALL_PROXY"))
    }

    /// The certificates to trust, by the variables that requests, curl and OpenSSL read.
    fn certificates() -> Option<PathBuf> {
        let names = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"];
        let set = |name| std::env::var_os(name).filter(|path| !path.is_empty());
        names.into_iter().find_map(set).map(PathBuf::from)
    }

    /// The nearest folder above that exists already.
    fn existing(path: &Path) -> PathBuf {
        path.ancestors().find(|p| p.is_dir()).unwrap_or(path).to_path_buf()
    }
}
