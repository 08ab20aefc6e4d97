//! Flags that have no effect on a run are mistakes. Of every flag of every command a table says when it has one: of the
//! commands that convert in `conversion`, of all others in `commands`; a flag in neither fails a test.

mod commands;
mod conversion;

pub use commands::refuse as refuse_of_command;
pub use conversion::{of_plan, refuse};

use clap::ArgMatches;
use clap::parser::ValueSource;

/// The flags that were given on the command line, by their names in the program.
pub fn given(matches: &ArgMatches) -> Vec<String> {
    let ids = matches.ids().map(clap::Id::as_str);
    ids.filter(|id| is_given(matches, id)).map(String::from).collect()
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}
