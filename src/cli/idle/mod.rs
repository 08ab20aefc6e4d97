//! Flags that have no effect on a run are mistakes. Of every flag of every command a table says when it has one: of the
//! commands that convert in `conversion`, of all others in `commands`; a flag in neither fails a test.

use crate::{Error, Result};
use clap::ArgMatches;
use clap::parser::ValueSource;

/// When a flag has an effect, by what `T` says of the run, and what to say where it has none.
struct Rule<T> {
    id: &'static str,
    flag: &'static str,
    has_effect: fn(&T) -> bool,
    otherwise: &'static str,
}

macro_rules! rules {
    ($($id:ident $flag:literal $effect:expr, $otherwise:expr;)*) => {
        &[$(Rule { id: stringify!($id), flag: $flag, has_effect: $effect, otherwise: $otherwise }),*]
    };
}

mod commands;
mod conversion;

pub use commands::refuse as refuse_of_command;
pub use conversion::{of_plan, refuse};

/// The flags that were given on the command line, by their names in the program.
pub fn given(matches: &ArgMatches) -> Vec<String> {
    let ids = matches.ids().map(clap::Id::as_str);
    ids.filter(|id| is_given(matches, id)).map(String::from).collect()
}

fn is_given(matches: &ArgMatches, id: &str) -> bool {
    matches.value_source(id) == Some(ValueSource::CommandLine)
}

/// Refuses the first of these flags that `is_given` and would do nothing.
fn refuse_idle<T>(rules: &[Rule<T>], is_given: impl Fn(&str) -> bool, what: &T) -> Result<()> {
    match rules.iter().find(|rule| is_given(rule.id) && !(rule.has_effect)(what)) {
        Some(rule) => Err(Error::Usage(format!("{} {}", rule.flag, rule.otherwise))),
        None => Ok(()),
    }
}
