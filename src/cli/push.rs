//! `quantize push`, and `quantize release --push-to`: a release goes into a repository on the Hub.

use super::args::HubArgs;
use super::commands::PushArgs;
use crate::Result;
use serde_json::Value;
use std::path::Path;

/// Where a release goes.
pub struct Target {
    /// The repository, `org/name`.
    pub id: String,
    pub revision: String,
    /// Whether a repository that is made is private.
    pub private: bool,
    /// Open a pull request instead of committing.
    pub create_pr: bool,
    /// The commit's message; by default what the release is.
    pub message: Option<String>,
    pub quiet: bool,
}

impl Target {
    /// What will happen, for a dry run.
    pub fn in_words(&self) -> String {
        let how = if self.create_pr { "as a pull request" } else { "with one commit" };
        let kind = if self.private { ", private where it has to be created" } else { "" };
        format!("would be pushed to {} at {}, {how}{kind}", self.id, self.revision)
    }
}

#[cfg(not(feature = "hub"))]
pub fn run(args: PushArgs) -> Result<()> {
    Err(crate::Error::unsupported(format!("{}: this build cannot send to the Hub", args.id))
        .hint("build with `--features hub`, or use `hf upload`"))
}

/// Errors: always `Unsupported`: this build has no Hub.
#[cfg(not(feature = "hub"))]
pub fn check(to: &Target, _hub: &HubArgs) -> Result<()> {
    Err(crate::Error::unsupported(format!("{}: this build cannot send to the Hub", to.id))
        .hint("build with `--features hub`, or leave --push-to out and use `hf upload`"))
}

/// Errors: as [`check`].
#[cfg(not(feature = "hub"))]
pub fn send(_folder: &Path, to: &Target, hub: &HubArgs, _threads: Option<usize>) -> Result<(Value, String)> {
    check(to, hub).map(|()| (Value::Null, String::new()))
}

#[cfg(feature = "hub")]
pub use with_hub::{check, run, send};

#[cfg(feature = "hub")]
mod with_hub {
    use super::*;
    use crate::Error;
    use crate::cli::args::Format;
    use crate::cli::interrupt::{CANCEL, catch_interrupt};
    use crate::cli::output::{print, print_json};
    use crate::cli::progress::Terminal;
    use crate::cli::{options, pull, values};
    use crate::control::{Control, Phase, Report, Run, Unit};
    use crate::release::push::{Package, package};
    use crate::source::hub::upload::{self, Destination, Difference, Sent};
    use crate::source::hub::{HubOptions, Watch};
    use crate::writer::gguf::human;
    use serde_json::json;

    pub fn run(args: PushArgs) -> Result<()> {
        catch_interrupt()?;
        let to = Target {
            id: values::of_address(&args.id),
            revision: args.hub.revision.clone().unwrap_or_else(|| "main".into()),
            private: args.private,
            create_pr: args.create_pr,
            message: args.message.clone(),
            quiet: args.common.quiet,
        };
        online(&args.hub)?;
        if args.dry_run {
            return dry_run(&args, &to);
        }
        upload::check_token(&options_for(&to, &args.hub)?)?;
        let (sent, url) = send(&args.folder, &to, &args.hub, args.common.threads)?;
        match args.common.format {
            Format::Json => print_json(&sent),
            Format::Text => print(&format!("{url}\n")),
        }
    }

    fn online(hub: &HubArgs) -> Result<()> {
        match hub.offline {
            true => Err(Error::Usage("pushing needs the network; leave out --offline and HF_HUB_OFFLINE".into())),
            false => Ok(()),
        }
    }

    fn options_for(to: &Target, hub: &HubArgs) -> Result<HubOptions> {
        pull::options(to.revision.clone(), hub)
    }

    fn control(threads: Option<usize>) -> Result<Control> {
        Ok(Control { threads: options::threads(threads)?, cancel: CANCEL.clone(), ..Control::default() })
    }

    /// What would stop a push, as far as can be told before there is anything to send: no token, one that is not
    /// accepted, no network.
    pub fn check(to: &Target, hub: &HubArgs) -> Result<()> {
        online(hub)?;
        let options = options_for(to, hub)?;
        upload::check_token(&options)?;
        let watch = Watch { cancel: CANCEL.flag(), begin: &|_| Ok(()), advance: &|_| () };
        upload::difference(&to.id, &[], &options, &watch).map(|_| ())
    }

    /// Sends the release in `folder`; what happened as JSON, and the address of the commit.
    pub fn send(folder: &Path, to: &Target, hub: &HubArgs, threads: Option<usize>) -> Result<(Value, String)> {
        let (control, options, terminal) = (control(threads)?, options_for(to, hub)?, Terminal::new(to.quiet));
        let package = package(folder, &to.id, Run::new(&control, &terminal))?;
        let destination = Destination {
            id: to.id.clone(),
            private: to.private,
            create_pr: to.create_pr,
            message: to.message.clone().unwrap_or_else(|| package.summary.clone()),
        };
        let begin = |bytes: u64| {
            terminal.begin(&Phase { name: "sending".into(), unit: Unit::Bytes, total: bytes });
            Ok(())
        };
        let advance = |bytes: u64| terminal.advance(bytes);
        let watch = Watch { cancel: CANCEL.flag(), begin: &begin, advance: &advance };
        let sent = upload::upload(&destination, &package.files, &options, &watch);
        terminal.end();
        Ok(told(to, &package, &sent?, &options))
    }

    fn told(to: &Target, package: &Package, sent: &Sent, options: &HubOptions) -> (Value, String) {
        let url = sent.url.clone().unwrap_or_else(|| format!("{}/{}", options.endpoint, to.id));
        let same = package.files.len() - sent.files.len();
        match sent.files.len() {
            0 => say!("all {same} files are already there, nothing was sent"),
            n => say!("{n} files in one commit, {} uploaded; {same} were already there", human(sent.bytes)),
        }
        let value = json!({
            "id": to.id, "revision": to.revision, "commit": sent.commit, "url": url, "files": sent.files,
            "bytes": sent.bytes, "same": same,
        });
        (value, url)
    }

    fn dry_run(args: &PushArgs, to: &Target) -> Result<()> {
        let (control, options) = (control(args.common.threads)?, options_for(to, &args.hub)?);
        let terminal = Terminal::new(to.quiet);
        let package = package(&args.folder, &to.id, Run::new(&control, &terminal))?;
        let watch = Watch { cancel: CANCEL.flag(), begin: &|_| Ok(()), advance: &|_| () };
        let lacks = upload::difference(&to.id, &package.files, &options, &watch)?;
        print_dry_run(args, to, &package, &lacks)
    }

    fn print_dry_run(args: &PushArgs, to: &Target, package: &Package, lacks: &Difference) -> Result<()> {
        let missing = || lacks.missing.iter().map(|i| &package.files[*i]);
        let bytes: u64 = missing().map(|file| file.size).sum();
        if args.common.format == Format::Json {
            let files: Vec<_> =
                missing().map(|f| json!({ "path": f.path, "bytes": f.size, "sha256": f.sha256 })).collect();
            return print_json(&json!({
                "id": to.id, "revision": to.revision, "exists": lacks.exists, "dry_run": true, "files": files,
                "bytes": bytes, "same": package.files.len() - lacks.missing.len(),
            }));
        }
        let mut out = String::new();
        if !lacks.exists {
            let kind = if to.private { "private" } else { "public" };
            out += &format!("would create the {kind} repository {}\n", to.id);
        }
        for file in missing() {
            out += &format!("would send {:>10}  {}\n", human(file.size), file.path);
        }
        let same = package.files.len() - lacks.missing.len();
        out += &format!("{} files, {} in all; {same} are already there\n", lacks.missing.len(), human(bytes));
        print(&out)
    }
}
