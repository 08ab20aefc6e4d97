//! `quantize push`: a release goes into a repository on the Hub.

use super::commands::PushArgs;
use crate::Result;

#[cfg(not(feature = "hub"))]
pub fn run(args: PushArgs) -> Result<()> {
    Err(crate::Error::unsupported(format!("{}: this build cannot send to the Hub", args.id))
        .hint("build with `--features hub`, or use `hf upload`"))
}

#[cfg(feature = "hub")]
pub use with_hub::run;

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
        let args = PushArgs { id: values::of_address(&args.id), ..args };
        if args.hub.offline {
            return Err(Error::Usage("push needs the network; leave --offline and HF_HUB_OFFLINE away".into()));
        }
        let control =
            Control { threads: options::threads(args.common.threads)?, cancel: CANCEL.clone(), ..Control::default() };
        let to = pull::options(args.hub.revision.clone().unwrap_or_else(|| "main".into()), &args.hub)?;
        if !args.dry_run {
            upload::check_token(&to)?;
        }
        let terminal = Terminal::new(args.common.quiet);
        let package = package(&args.folder, &args.id, Run::new(&control, &terminal))?;
        let begin = |bytes: u64| {
            terminal.begin(&Phase { name: "sending".into(), unit: Unit::Bytes, total: bytes });
            Ok(())
        };
        let advance = |bytes: u64| terminal.advance(bytes);
        let watch = Watch { cancel: CANCEL.flag(), begin: &begin, advance: &advance };
        if args.dry_run {
            let lacks = upload::difference(&args.id, &package.files, &to, &watch)?;
            return foretell(&args, &package, &lacks, &to);
        }
        let destination = Destination {
            id: args.id.clone(),
            private: args.private,
            create_pr: args.create_pr,
            message: args.message.clone().unwrap_or_else(|| package.summary.clone()),
        };
        let sent = upload::upload(&destination, &package.files, &to, &watch);
        terminal.end();
        say_sent(&args, &package, &sent?, &to)
    }

    fn foretell(args: &PushArgs, package: &Package, lacks: &Difference, to: &HubOptions) -> Result<()> {
        let missing = || lacks.missing.iter().map(|i| &package.files[*i]);
        let bytes: u64 = missing().map(|file| file.size).sum();
        if args.common.format == Format::Json {
            let files: Vec<_> =
                missing().map(|f| json!({ "path": f.path, "bytes": f.size, "sha256": f.sha256 })).collect();
            return print_json(&json!({
                "id": args.id, "revision": to.revision, "exists": lacks.exists, "dry_run": true, "files": files,
                "bytes": bytes, "same": package.files.len() - lacks.missing.len(),
            }));
        }
        let mut out = String::new();
        if !lacks.exists {
            let kind = if args.private { "private" } else { "public" };
            out += &format!("would make the {kind} repository {}\n", args.id);
        }
        for file in missing() {
            out += &format!("would send {:>10}  {}\n", human(file.size), file.path);
        }
        let same = package.files.len() - lacks.missing.len();
        out += &format!("{} files, {} in all; {same} are there already\n", lacks.missing.len(), human(bytes));
        print(&out)
    }

    fn say_sent(args: &PushArgs, package: &Package, sent: &Sent, to: &HubOptions) -> Result<()> {
        let page = format!("{}/{}", to.endpoint, args.id);
        let url = sent.url.clone().unwrap_or(page);
        let same = package.files.len() - sent.files.len();
        if args.common.format == Format::Json {
            return print_json(&json!({
                "id": args.id, "revision": to.revision, "commit": sent.commit, "url": url, "files": sent.files,
                "bytes": sent.bytes, "same": same,
            }));
        }
        match sent.files.len() {
            0 => say!("all {same} files are there already, nothing was sent"),
            n => say!("{n} files in one commit, {} to the storage; {same} were there already", human(sent.bytes)),
        }
        print(&format!("{url}\n"))
    }
}
