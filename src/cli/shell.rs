//! What shells and `man` are told of the command line: completion scripts, manual pages.

use super::output::print;
use crate::{Error, Result, disk};
use clap::{Args, Command};
use clap_mangen::Man;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct ManArgs {
    /// The command whose page is printed [default: the page of the program]
    pub command: Option<String>,
    /// Write the pages of all commands into this folder instead
    #[arg(long, value_name = "FOLDER", conflicts_with = "command")]
    pub dir: Option<PathBuf>,
}

/// `program` is the whole command line.
pub fn completions(shell: clap_complete::Shell, mut program: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut program, "quantize", &mut script);
    print(&String::from_utf8_lossy(&script))
}

pub fn manual(args: ManArgs, program: Command) -> Result<()> {
    // The page of the program names those of its commands, and of `help` there is none.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    if let Some(folder) = &args.dir {
        if disk::is_no_folder(folder) {
            return Err(Error::Usage(format!("{} is not a folder", folder.display())));
        }
        disk::create_folders(folder).map_err(|e| Error::io(folder, e))?;
        return std::iter::once(&program).chain(program.get_subcommands()).try_for_each(|command| {
            let (name, page) = page(command)?;
            let path = folder.join(name);
            disk::write(&path, page.as_bytes()).map_err(|e| Error::io(&path, e))
        });
    }
    let command = match &args.command {
        None => &program,
        Some(name) => program
            .find_subcommand(name)
            .ok_or_else(|| Error::Usage(format!("there is no command '{name}'; quantize --help lists them")))?,
    };
    print(&page(command)?.1)
}

/// The name of the file and what is in it.
fn page(command: &Command) -> Result<(String, String)> {
    let man = Man::new(command.clone()).manual("quantize").source(concat!("quantize ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render(&mut page).map_err(|e| Error::io("manual page", e))?;
    Ok((man.get_filename(), String::from_utf8_lossy(&page).into_owned()))
}
